"""One request, from bytes to problem document: size and time limits, who is calling, and errors as RFC 9457.

A route is a row: method, path, what it is used for, handler. The handler gets a call whose caller is admitted and whose
body is bounded; it raises the errors of `casemate.errors` and never renders one.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from casemate.errors import (
    BusyError,
    CasemateError,
    ConflictError,
    NotAuthorisedError,
    NotFoundError,
    OperationError,
    PolicyDeniedError,
    UntrustedDataError,
    UsageError,
)
from casemate.fleet.admission import LaterError, TooManyError
from casemate.fleet.context import Fleet
from casemate.fleet.identity import Known
from casemate.fleet.peer import Peer
from casemate.fleet.states import Use
from casemate.formats.fleet_api import MAX_BODY

PROBLEM: Final = "application/problem+json"
_STATUS: Final[tuple[tuple[type[CasemateError], int], ...]] = (
    (UntrustedDataError, 400),
    (NotAuthorisedError, 401),
    (PolicyDeniedError, 403),
    (NotFoundError, 404),
    (ConflictError, 409),
    (TooManyError, 429),
    (BusyError, 503),
    (UsageError, 400),
    (OperationError, 503),
    (CasemateError, 500),
)
_TOO_LARGE: Final = "body-size"
_log = logging.getLogger("casemate.fleet")


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A request whose caller proved nothing yet: enrolment."""

    fleet: Fleet
    request: Request
    body: bytes

    @property
    def now(self) -> float:
        """Return the server's time in seconds since the epoch."""
        return self.fleet.clock.wall()


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceCall(Call):
    """A request of an enrolled device that may make it; `peer` is the certificate of its connection."""

    device: Known
    peer: Peer


OpenHandler = Callable[[Call], Awaitable[Response]]
DeviceHandler = Callable[[DeviceCall], Awaitable[Response]]


def open_route(method: str, path: str, handler: OpenHandler) -> Route:
    """Return a route of the enrolment listener."""

    async def answer(request: Request) -> Response:
        fleet: Fleet = request.app.state.fleet
        address, now = request.client.host if request.client else "", fleet.clock.monotonic()
        if address and not fleet.guesses.has(address, now):
            raise TooManyError("too many wrong tokens from this address", fleet.guesses.seconds(address, now))
        try:
            return await handler(Call(fleet, request, await read_body(request)))
        except NotAuthorisedError:
            fleet.guesses.take(address, now)
            raise

    return Route(path, guarded(answer, "enrol"), methods=[method])


def device_route(method: str, path: str, use: Use, handler: DeviceHandler) -> Route:
    """Return a route of the devices' listener; its caller may do *use*, or the handler is not called."""

    async def answer(request: Request) -> Response:
        fleet: Fleet = request.app.state.fleet
        fleet.load.enter(fleet.clock.monotonic())
        try:
            peer, device = await admit(request, use)
            return await handler(DeviceCall(fleet, request, await read_body(request), device, peer))
        finally:
            fleet.load.leave()

    return Route(path, guarded(answer, "devices"), methods=[method])


async def admit(request: Request, use: Use) -> tuple[Peer, Known]:
    """Return who is calling.

    Raises:
        NotAuthorisedError: no certificate, or none that counts.
        PolicyDeniedError: not for *use*.

    """
    fleet: Fleet = request.app.state.fleet
    peer: Peer | None = request.app.state.peers.of(request)
    if peer is None:
        raise NotAuthorisedError("a device's certificate is needed here")
    device = await fleet.directory.admit(peer.serial, use)
    if device.id != peer.device:
        raise NotAuthorisedError("this certificate is not one of an enrolled device")
    return peer, device


def require_text(*values: str) -> None:
    """Refuse text that no database stores.

    Raises:
        UsageError: there is a NUL in it.

    """
    if any("\0" in value for value in values):
        raise UsageError("there is a NUL character in this request")


async def read_body(request: Request) -> bytes:
    """Return the body, at most `MAX_BODY` bytes.

    Raises:
        UntrustedDataError: `body-size`.

    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY:
        raise UntrustedDataError(f"a body is at most {MAX_BODY} bytes", check=_TOO_LARGE)
    if request.method == "GET":
        return b""
    body, more = b"", True
    while more:  # the protocol ends a message that does not come in time
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise UntrustedDataError(f"a body is at most {MAX_BODY} bytes", check=_TOO_LARGE)
    return body


def guarded(
    answer: Callable[[Request], Awaitable[Response]], listener: str
) -> Callable[[Request], Awaitable[Response]]:
    """Return *answer* with every failure rendered and counted; nothing unexpected is ever a success."""

    async def respond(request: Request) -> Response:
        metrics = request.app.state.fleet.metrics
        try:
            response = await answer(request)
        except CasemateError as error:
            metrics.refused(listener, error)
            response = problem(error)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception:  # noqa: BLE001 - the edge: an answer that says nothing, a trace in our own log
            _log.exception("a request failed")
            metrics.refusals.labels(listener, "unexpected").inc()
            response = problem(OperationError("the server failed"))
        metrics.answered(listener, response.status_code)
        return response

    return respond


def status_of(error: CasemateError) -> int:
    """Return the HTTP status that says what *error* says."""
    if getattr(error, "check", "") == _TOO_LARGE:
        return 413
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def problem(error: CasemateError) -> Response:
    """Return *error* as a problem document (RFC 9457)."""
    status = status_of(error)
    body: dict[str, Any] = {"type": f"urn:casemate:{error.code}", "title": error.message, "status": status}
    if error.hint:
        body["detail"] = error.hint
    if isinstance(error, UntrustedDataError):
        body["check"] = error.check
    headers = {}
    if isinstance(error, LaterError):
        headers["Retry-After"] = str(math.ceil(error.seconds))
    elif status == 503:  # noqa: PLR2004 - service unavailable
        # spread: everybody who is refused now would come back in the same second
        headers["Retry-After"] = str(random.randint(5, 60))  # noqa: S311 - jitter, no secret
    if status == 401:  # noqa: PLR2004 - unauthorised
        headers["WWW-Authenticate"] = 'Basic realm="casemate enrolment"'
    return Response(msgspec.json.encode(body), status, headers, PROBLEM)


def reply(message: msgspec.Struct, status: int = 200) -> Response:
    """Return *message* as JSON."""
    return Response(msgspec.json.encode(message), status, media_type="application/json")
