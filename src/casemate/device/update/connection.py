"""Connections of a transport: whom they reach (TLS 1.3, a pinned key, a proxy), and how they are ended from outside.

A pinned key replaces the authorities: TLS proves that the server holds it, whatever its certificate says.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Final, Self
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from casemate.crypto import x509
from casemate.errors import UntrustedDataError

_STEP: Final = 0.05  # seconds


class Watchdog:
    """Ends a request at its deadline, which moves while bytes arrive. One thread, for as long as the request."""

    def __init__(self, seconds: float, abort: Callable[[], None], monotonic: Callable[[], float]) -> None:
        """Call *abort* after *seconds*, from another thread, unless `allow` moves that or the context ends."""
        self._deadline = monotonic() + seconds
        self._abort = abort
        self._monotonic = monotonic
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._paused = False
        self.fired = False

    def allow(self, seconds: float) -> None:
        """Move the deadline."""
        self._deadline += seconds

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time until the context ends: it is our own."""
        begun, self._paused = self._monotonic(), True
        try:
            yield
        finally:
            self._deadline += self._monotonic() - begun
            self._paused = False

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while (rest := self._deadline - self._monotonic()) > 0 or self._paused:
            if self._done.wait(max(rest, _STEP)):
                return
        self.fired = True
        self._abort()


def pools(pin: str, proxy: str, watch: Callable[[socket.socket | None], None]) -> urllib3.PoolManager:
    """Return a pool whose connections tell *watch* of their socket and check the pin before a byte is sent."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            made = super()._new_conn()
            watch(made.dup())
            return made

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            made = super()._new_conn()
            watch(made.dup())
            return made

        def connect(self) -> None:
            super().connect()
            if pin:
                _require_pin(self, pin)
                self.is_verified = True

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    context = _context(pinned=bool(pin))
    made: urllib3.PoolManager
    if proxy:
        made = urllib3.ProxyManager(proxy, proxy_headers=_proxy_headers(proxy), ssl_context=context, maxsize=1)
    else:
        made = urllib3.PoolManager(ssl_context=context, maxsize=1)
    if pin:
        made.connection_pool_kw["assert_hostname"] = False
    made.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return made


def _proxy_headers(url: str) -> dict[str, str]:
    split = urlsplit(url)
    return urllib3.make_headers(proxy_basic_auth=f"{split.username}:{split.password or ''}") if split.username else {}


def _context(*, pinned: bool) -> ssl.SSLContext:
    """Return TLS 1.3 only. With a pin the key is the identity: the handshake proves that the server has it."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _require_pin(connection: HTTPSConnection, pin: str) -> None:
    der = connection.sock.getpeercert(binary_form=True) if isinstance(connection.sock, ssl.SSLSocket) else None
    if not der or hashlib.sha256(x509.public_key(der)).hexdigest() != pin:
        connection.close()
        raise UntrustedDataError(
            "the server's key is not the pinned one",
            check="server-key",
            hint="somebody is in between, or the server got a new key: then pin it with `casemate update trust`",
        )
