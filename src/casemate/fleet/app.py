"""The applications behind the three listeners. What is not in a table here is answered 404."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from casemate.errors import CasemateError, NotFoundError, OperationError, UsageError
from casemate.fleet import attestation, checkin, comeback, est, keybroker, tpm_enrolment, witness
from casemate.fleet.accounts.passkeys import RelyingParty
from casemate.fleet.api.app import api_app
from casemate.fleet.bounds import BoundedBody
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.exchange import problem
from casemate.fleet.peer import Peers
from casemate.fleet.store import schema
from casemate.fleet.usage import reports
from casemate.fleet.web import routes as web


def enrolment_app(fleet: Fleet) -> Starlette:
    """Return what anybody can reach: how to become a device."""
    return _app(fleet, "enrol", [*est.OPEN_ROUTES, *tpm_enrolment.ROUTES, *comeback.ROUTES])


def devices_app(fleet: Fleet, peers: Peers) -> Straight:
    """Return what enrolled devices can reach."""
    proving = [*attestation.ROUTES, *keybroker.ROUTES, *witness.ROUTES]
    app = _app(fleet, "devices", [*checkin.ROUTES, *est.DEVICE_ROUTES, *proving, *reports.ROUTES])
    app.state.peers = peers
    return Straight(app, checkin.ROUTE)


class Straight:
    """An application whose busiest route is answered before any routing: it is nearly everything a fleet asks."""

    def __init__(self, app: Starlette, busiest: Route) -> None:
        """Serve *app*, which has *busiest* too."""
        self._app = app
        self._path, self._methods, self._answer = busiest.path, busiest.methods or set(), busiest.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] == "http" and scope["path"] == self._path and scope["method"] in self._methods:
            scope["app"] = self._app
            response = await self._answer(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def people_app(fleet: Fleet, commander: Commander, party: RelyingParty) -> Starlette:
    """Return what people reach: the console at the address of *party*, whose orders *commander* signs."""
    app = _app(fleet, "people", [Route("/healthz", _health), Route("/metrics", _metrics)])
    app.mount("/api/v1", BoundedBody(api_app(fleet, commander), fleet.metrics))
    web.attach(app, fleet, commander, party)
    return app


async def _health(request: Request) -> Response:
    """Answer 200 when the database answers, with the schema of this version, and this server means to stay."""
    try:
        ready = (
            not request.app.state.fleet.leaving
            and await schema.revision(request.app.state.fleet.store) == schema.newest()
        )
    except CasemateError:
        ready = False
    return JSONResponse({"ok": ready}, 200 if ready else 503)


async def _metrics(request: Request) -> Response:
    return Response(request.app.state.fleet.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _app(fleet: Fleet, listener: str, routes: list[Route]) -> Starlette:
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.state.fleet, app.state.listener = fleet, listener
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer what routing refuses as a problem, too."""
    status: Any = getattr(error, "status_code", 500)
    kinds: dict[int, CasemateError] = {404: NotFoundError("nothing is here"), 405: UsageError("not with this method")}
    found = kinds.get(status, OperationError("the server failed"))
    state = request.app.state
    state.fleet.metrics.refused(state.listener, found)
    response = problem(found)
    response.status_code = status
    return response
