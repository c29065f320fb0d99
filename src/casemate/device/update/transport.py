"""A repository behind HTTPS: bounded in size and in time, whatever the server does.

TLS 1.3, verified by the system's authorities or by the digest of one pinned public key. No redirects, no cookies, no
compression, no keep-alive beyond one origin. What a server refuses (4xx) is not asked for again; what may pass (5xx,
timeouts, cuts) is, with full jitter. A server that drips bytes is cut off by a watchdog thread that shuts the socket
down: the time between two bytes bounds nothing, neither in the body nor in a header or handshake.

None of this protects what is fetched: signatures and digests do. It protects the device's time, line and privacy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http
import ipaddress
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader

from casemate.device.update import pace
from casemate.device.update.connection import Watchdog, pools
from casemate.device.update.source import CHUNKS, Taken, ignore
from casemate.errors import NotFoundError, OperationError, UntrustedDataError, UsageError

URL_LIMIT: Final = 1024
_PIECE: Final = 64 * 1024
_PROGRESS: Final = 64 * 1024
_PIN: Final = re.compile(r"[0-9a-f]{64}\Z")
_ABSENT: Final = {403, 404, 410}  # some object stores answer 403 for what is not there
_LATER: Final = {408, 425, 429}
_HEADERS: Final = {"User-Agent": "casemate", "Accept-Encoding": "identity", "Accept": "*/*"}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Limits of one request. Times in seconds, *least_rate* in bytes a second after the first *grace* seconds."""

    connect: float = 10.0
    gap: float = 30.0
    grace: float = 60.0
    least_rate: float = 1024.0
    tries: int = 5
    longest_wait: float = 120.0


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a repository is, checked by `parse_endpoint`. *pin*: the hex SHA-256 of the server's public key (SPKI)."""

    url: str
    pin: str = ""
    proxy: str = ""


def parse_endpoint(url: str, *, pin: str = "", proxy: str = "", allow_http: bool = False) -> Endpoint:
    """Check where updates come from.

    Raises:
        UsageError: not an address, plain http to another machine, a pin without TLS.

    """
    split = _split(url)
    if split.scheme not in {"http", "https"} or split.query or split.fragment or split.username or split.password:
        raise UsageError(f"{url!r} is not the address of a repository", hint="give https://HOST/PATH")
    if split.scheme == "http" and not allow_http and not _is_loopback(split.hostname or ""):
        raise UsageError(
            "updates over plain http tell everybody on the way what this device runs",
            hint="use https, or set update.allow_http = true",
        )
    if pin and (split.scheme != "https" or not _PIN.match(pin)):
        raise UsageError(
            "a pinned key is 64 hexadecimal digits, for https", hint="the SHA-256 of the server's public key (DER SPKI)"
        )
    if proxy and (_split(proxy).scheme != "http" or _split(proxy).path.strip("/")):
        raise UsageError(f"{proxy!r} is not the address of a proxy", hint="give http://HOST:PORT")
    return Endpoint(url.rstrip("/") + "/", pin, proxy)


def _split(url: str) -> SplitResult:
    try:
        split = urlsplit(url)
        _ = split.port
    except ValueError as error:
        raise UsageError(f"not an address: {error}", hint="give https://HOST/PATH") from error
    if len(url) > URL_LIMIT or not split.hostname or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError("not an address", hint="give https://HOST/PATH")
    return split


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Transport:
    """One origin, one connection, kept alive."""

    offline = False

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        bounds: Bounds | None = None,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Fetch from *endpoint*; nothing is opened before the first `get`."""
        self._url = endpoint.url
        self._bounds = bounds or Bounds()
        self._sleep = sleep
        self._draw = draw
        self._monotonic = monotonic
        self._socket: socket.socket | None = None
        self._pools = pools(endpoint.pin, endpoint.proxy, self._watch)

    def __enter__(self) -> Self:
        """Use it as a context: it closes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._pools.clear()
        self._watch(None)

    def get(self, path: str, limit: int, taken: Taken = ignore) -> bytes:
        """Return a file; see `Source`. A chunk that was cut off goes on where it was: its address is its digest.

        Raises:
            UntrustedDataError: also `server-key` and `server-certificate`: somebody else answers.
            NotNowError: the server asks to come back later than this waits.

        """
        held, attempt = bytearray(), 0
        while True:
            before = len(held)
            try:
                return self._once(path, limit, held, taken)
            except _Again as again:
                attempt = 0 if len(held) - before >= _PROGRESS else attempt + 1
                if attempt >= self._bounds.tries:
                    raise OperationError(
                        f"cannot fetch {path}: {again.why}", hint="what was fetched is kept; try again later"
                    ) from again
                self._sleep(self._wait(again, attempt))
                if not path.startswith(CHUNKS):
                    held.clear()

    def _wait(self, again: _Again, attempt: int) -> float:
        wait = pace.backoff(attempt, self._draw())
        if again.after <= self._bounds.longest_wait:
            return max(again.after, wait)
        raise pace.NotNowError(
            f"the server asks to come back in {again.after / 60:.0f} minutes", reason="server"
        ) from again

    def _once(self, path: str, limit: int, held: bytearray, taken: Taken) -> bytes:
        """Ask once; *held* is what came before, and grows."""
        bounds = self._bounds
        with Watchdog(bounds.grace, self._abort, self._monotonic) as watchdog:
            try:
                with self._response(path, len(held)) as response:
                    if response.status == http.HTTPStatus.OK:
                        held.clear()
                    if int(response.headers.get("Content-Length") or 0) + len(held) > limit:
                        raise _too_large(path, limit)
                    while piece := response.read1(_PIECE, decode_content=False):
                        held += piece
                        if len(held) > limit:
                            raise _too_large(path, limit)
                        watchdog.allow(len(piece) / bounds.least_rate)
                        with watchdog.pause():
                            taken(len(piece))
                    if watchdog.fired:
                        raise _Again("the server is too slow")
            except (HTTPError, OSError, ValueError) as error:
                raise _translated(error, slow=watchdog.fired) from error
        return bytes(held)

    @contextlib.contextmanager
    def _response(self, path: str, have: int) -> Iterator[urllib3.BaseHTTPResponse]:
        headers = _HEADERS | ({"Range": f"bytes={have}-"} if have else {})
        timeout = urllib3.Timeout(connect=self._bounds.connect, read=self._bounds.gap)
        response = self._pools.request(
            "GET",
            self._url + path,
            headers=headers,
            timeout=timeout,
            preload_content=False,
            redirect=False,
            retries=False,
        )
        try:
            _judge(path, response, have)
            yield response
        except BaseException:
            response.close()  # what is still to come belongs to a request that failed
            raise
        response.release_conn()

    def _watch(self, connected: socket.socket | None) -> None:
        """Remember the socket of the newest connection (a duplicate of its own: TLS takes the first one over)."""
        if self._socket is not None:
            self._socket.close()
        self._socket = connected

    def _abort(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)


class _Again(Exception):  # noqa: N818 - a way of control, never seen outside
    """It may work another time: not before *after* seconds."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.after = after


def _judge(path: str, response: urllib3.BaseHTTPResponse, have: int) -> None:
    """Go on with a good answer; anything else is an error."""
    status = response.status
    if status == http.HTTPStatus.OK:
        return
    if status == http.HTTPStatus.PARTIAL_CONTENT and have:
        if response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            return
        raise OperationError(f"cannot fetch {path}: the server sent another part", hint="its web server is broken")
    if status in _ABSENT:
        raise NotFoundError(f"the server does not have {path} ({status})", hint="ask whoever publishes the releases")
    if status in _LATER or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _Again(f"the server answers {status}", _retry_after(response))
    if 300 <= status < 400:  # noqa: PLR2004 - RFC 9110, 15.4
        raise OperationError(
            f"the server sends this device elsewhere for {path} ({status})",
            hint="redirects are refused: give the address it ends at with `casemate update trust`",
        )
    raise OperationError(f"cannot fetch {path}: the server answers {status}", hint="ask whoever runs the server")


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    header = response.headers.get("Retry-After")
    if not header:
        return 0.0
    try:
        return max(0.0, urllib3.Retry().parse_retry_after(header))
    except InvalidHeader:
        return 0.0


def _translated(error: Exception, *, slow: bool) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UntrustedDataError(
                f"the server is not who it should be: {cause.verify_message}",
                check="server-certificate",
                hint="check the address and this device's clock, or pin the server's key with `casemate update trust`",
            )
        cause = cause.__cause__ or cause.__context__
    return _Again("the server is too slow" if slow else f"{type(error).__name__}: {error}"[:200])


def _too_large(path: str, limit: int) -> UntrustedDataError:
    return UntrustedDataError(
        f"the server sends more than {limit} bytes for {path}", check="transfer-size", hint="nothing of it was used"
    )
