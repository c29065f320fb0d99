"""uvicorn on sockets that are bound already. How it speaks is in `protocol`, how it takes connections in `acceptor`.

The devices' context requires TLS 1.3 and a certificate of our authority; there is no way to make it without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn

from casemate.config import parse_address
from casemate.errors import ConfigError, HostError, OperationError
from casemate.fleet.acceptor import Acceptor
from casemate.fleet.protocol import KEEP_ALIVE_SECONDS, PeerProtocol, send_alerts, spare_memory

BACKLOG: Final = 4096
LEAVE_SECONDS: Final = 10
"""A server that stops gives requests that were begun this long."""
_UNIX: Final = "unix:"


class Listener(uvicorn.Server):
    """One application on one bound socket; the process, not uvicorn, handles signals."""

    def __init__(
        self, app: Any, sock: socket.socket, tls: ssl.SSLContext | None, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """Serve *app* on *sock*; without *tls* the socket must be a unix one. *tell* hears why somebody got nowhere."""
        if tls is None and sock.family != socket.AF_UNIX:
            raise ConfigError("a listener without TLS must be a unix socket")
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=LEAVE_SECONDS,
        )
        super().__init__(config)
        spare_memory()
        send_alerts()
        self._sock = sock
        self._tls = tls
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; unlike uvicorn, with limits for TLS handshakes."""
        del sockets

        def protocol() -> PeerProtocol:
            made = PeerProtocol(config=self.config, server_state=self.server_state, app_state={})
            made.tell = self._tell
            return made

        acceptor = Acceptor(self._sock, self._tls, protocol, self._tell)
        acceptor.start(BACKLOG)
        self.servers = [acceptor]  # type: ignore[list-item]  # of a server uvicorn wants these two methods
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Look once a second at who is over its time."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                connection.look_at(now)  # type: ignore[union-attr]  # each is a PeerProtocol
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def allow_many() -> None:
    """Take as many descriptors as this process may: a wake stream is one, and the usual limit is a thousand."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def bind(address: str) -> socket.socket:
    """Return a bound socket for HOST:PORT (port 0: any) or unix:PATH (0660, made anew).

    Raises:
        ConfigError: not an address.
        OperationError: it is taken, or not ours to bind.

    """
    try:
        if address.startswith(_UNIX):
            return _bind_unix(Path(address.removeprefix(_UNIX)))
        host, port = parse_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except ValueError as error:
        raise ConfigError(f"{address!r} {error}") from error
    except OSError as error:
        raise OperationError(f"cannot listen on {address}: {error.strerror or error}") from error
    return sock


def address_of(sock: socket.socket) -> str:
    """Return where *sock* listens: https://host:port, or unix:PATH."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"{_UNIX}{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"https://{host}:{name[1]}"


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context for clients that may be anybody: TLS 1.3, no certificate asked for.

    Raises:
        ConfigError: the files do not work.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the TLS certificate {certificate} and its key do not work: {error}") from error
    return context


def device_context(certificate: Path, key: Path, authorities: list[str]) -> ssl.SSLContext:
    """Return a context that lets nobody in without a certificate issued below *authorities* (PEM).

    Raises:
        ConfigError: the files do not work.
        HostError: the library would not insist on a certificate.

    """
    if not authorities:
        raise HostError("no authority for devices: refusing to listen")
    context = server_context(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata="".join(authorities))
    if context.verify_mode is not ssl.CERT_REQUIRED or len(context.get_ca_certs()) < len(authorities):
        raise HostError("certificates of devices would not be checked: refusing to listen")
    return context


def _bind_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    before = os.umask(0o117)  # never a moment in which others could connect
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)
    return sock
