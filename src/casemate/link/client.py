"""HTTPS to one fleet: TLS 1.3, the fleet's own root and no other, the device's certificate. Blocking; bounded.

Certificates are not judged by this machine's clock, which may be years off and would then lock the device out of the
fleet that could tell it. Instead the server's certificate must not have ended before `earliest`, a moment that the
fleet has signed. A key of the server that was stolen and has expired since still speaks to a device that heard nothing
newer; it can neither command it (`formats.envelope`) nor is it given a model's key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPSConnection

from casemate.crypto import client_certificate
from casemate.errors import CasemateError, OperationError, UntrustedDataError

ANSWER_LIMIT: Final = 1 << 20
CONNECT_WITHIN: Final = 10.0
ANSWER_WITHIN: Final = 30.0
STREAM_SILENCE: Final = 90.0
"""Seconds without a byte (the server sends a comment now and then) after which a wake stream is taken for dead."""
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name
_PIECE: Final = 4096
_CERTIFICATE_ALERT: Final = re.compile("ALERT_(CERTIFICATE|BAD_CERTIFICATE|UNKNOWN_CA)")


class HungUpError(OperationError):
    """The other side ended the connection before it answered; *for_certificate*: and said that ours is why."""

    def __init__(self, message: str, hint: str, *, for_certificate: bool) -> None:
        """Say what happened."""
        super().__init__(message, hint=hint)
        self.for_certificate = for_certificate


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer: its status, its body, and the seconds `Retry-After` asks for."""

    status: int
    body: bytes
    retry_after: float = 0.0


@dataclasses.dataclass(frozen=True)
class Identity:
    """Files with the device's chain and key (PEM)."""

    certificate: Path
    key: Path


def tls_context(root: bytes | None, identity: Identity | None = None) -> ssl.SSLContext:
    """Return a client context that trusts *root* (DER) alone; None trusts nobody's word and only opens the line."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if root is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=root)
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)
    if identity:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


class FleetClient:
    """A conversation with one listener of a fleet: one connection that is kept alive, one request at a time."""

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        *,
        earliest: Callable[[], float] = lambda: 0.0,
        address: str = "",
    ) -> None:
        """Speak to *url* (https://HOST[:PORT]) over *context*; *address* is connected to instead of a looked-up one."""
        place = urlsplit(url)
        if place.scheme != "https" or not place.hostname:
            raise OperationError(f"{url!r} is no https address", hint="write it as https://HOST:PORT")
        self.host, self.port = place.hostname, place.port or 443
        self._connected = address
        client = self

        class Connection(HTTPSConnection):
            """Checks what the context does not, before a byte of a request is sent."""

            def _new_conn(self) -> socket.socket:
                if address:
                    return socket.create_connection((address, client.port), CONNECT_WITHIN)
                return super()._new_conn()

            def connect(self) -> None:
                super().connect()
                client.connected(self.sock, earliest())  # type: ignore[arg-type]
                self.is_verified = True  # by the context; or, before a root is known, by its fingerprint, by the caller

        class Pool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Connection

        self._pool = Pool(
            self.host,
            self.port,
            maxsize=1,
            block=True,
            ssl_context=context,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_WITHIN, read=ANSWER_WITHIN),
        )

    @property
    def address(self) -> str:
        """Return the IP address of the last connection, empty before the first."""
        return self._connected

    def connected(self, sock: ssl.SSLSocket, earliest: float) -> None:
        """Judge a new connection.

        Raises:
            UntrustedDataError: `server-certificate-expired`, `server-certificate-missing`.

        """
        der = sock.getpeercert(binary_form=True)
        if der is None:
            sock.close()
            raise UntrustedDataError("the server showed no certificate", check="server-certificate-missing")
        if client_certificate.read(der).not_after < earliest:
            sock.close()
            raise UntrustedDataError("the server's certificate has expired", check="server-certificate-expired")
        self._connected = str(ipaddress.ip_address(sock.getpeername()[0].partition("%")[0]))

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """Send one request and read its whole answer.

        Raises:
            OperationError: nobody answered, or not in time.
            UntrustedDataError: the other side is not the fleet, or its answer is over `ANSWER_LIMIT`.

        """
        with self._faults():
            answer = self._pool.urlopen(
                method,
                path,
                body=body or None,
                headers={"content-type": "application/json", **(headers or {})},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            data = answer.read(ANSWER_LIMIT + 1)
            if len(data) > ANSWER_LIMIT:
                answer.close()
                raise UntrustedDataError("the fleet's answer is too large", check="fleet-answer-size")
            answer.release_conn()
            return Reply(answer.status, data, _seconds(answer.headers.get("retry-after", "")))

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of an endless answer as they come; ends when the server does.

        Raises:
            OperationError: refused, or silent for `STREAM_SILENCE` seconds.
            UntrustedDataError: the other side is not the fleet.

        """
        with self._faults():
            answer = self._pool.urlopen(
                "GET",
                path,
                headers={"accept": "text/event-stream"},
                redirect=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_WITHIN, read=STREAM_SILENCE),
            )
            try:
                if answer.status != 200:  # noqa: PLR2004 - OK
                    raise OperationError(f"the fleet refused the wake stream ({answer.status})")
                while piece := answer.read1(_PIECE):
                    yield piece
            finally:
                answer.close()

    def close(self) -> None:
        """Hang up."""
        self._pool.close()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what urllib3 and ssl raise into our errors."""
        try:
            yield
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _fault(f"{self.host}:{self.port}", error) from error


def _fault(place: str, error: BaseException) -> CasemateError:
    cause: BaseException | None = error
    while isinstance(cause, urllib3.exceptions.HTTPError):
        cause = getattr(cause, "reason", None) or (cause.args[-1] if cause.args else None)
        cause = cause if isinstance(cause, BaseException) else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return UntrustedDataError(
            f"{place} is not this fleet's server: {cause.verify_message}",
            check="server-certificate",
            hint="check the address; if it is right, somebody stands between",
        )
    said, hint = (
        f"no answer from the fleet at {place}: {type(cause or error).__name__}",
        "check the network and the address",
    )
    if isinstance(cause, ssl.SSLError | ConnectionResetError | BrokenPipeError):
        alert = str(getattr(cause, "reason", None) or "")
        return HungUpError(said, hint, for_certificate=_CERTIFICATE_ALERT.search(alert) is not None)
    return OperationError(said, hint=hint)


def _seconds(text: str) -> float:
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0  # noqa: PLR2004 - five digits are a day
