"""The routes of `/api/v1`. Each names the permission it needs; roles are a table elsewhere."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from casemate import __version__
from casemate.errors import CasemateError, NotFoundError, OperationError, UsageError
from casemate.fleet import devices, enrolment, inventory, listing
from casemate.fleet.accounts import roles
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.api import bulk, observe, rollouts, shapes, tokens, usage
from casemate.fleet.api.caller import DeviceName, IfMatch, Known, Limit, etag, seen
from casemate.fleet.api.once import IDEMPOTENCY, Once
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.devices import Change
from casemate.fleet.enrolment import Wanted
from casemate.fleet.exchange import problem
from casemate.fleet.states import Event, State
from casemate.fleet.store import tables

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": shapes.Problem, "description": text, "content": {"application/problem+json": {}}}
    for status, text in (
        (400, "Not a request of this API"),
        (401, "No token, or not a good one"),
        (403, "Not for this token, or not in this state"),
        (404, "Nothing of that name"),
        (409, "Somebody changed it meanwhile, or the same request is being carried out"),
        (413, "Too large"),
        (422, "This Idempotency-Key was used for another request"),
        (503, "Come back later"),
    )
}
_ORDERS: Final = {
    "approve": (Event.APPROVE, Permission.ENROL),
    "quarantine": (Event.QUARANTINE, Permission.QUARANTINE),
    "revoke": (Event.REVOKE, Permission.QUARANTINE),
    "release": (Event.RELEASE, Permission.RELEASE),
    "wipe": (Event.WIPE, Permission.WIPE),
}
_ROWS: Final = {
    "alerts": (tables.alert, tables.alert.c.id, Permission.READ),
    "grants": (tables.key_grant, tables.key_grant.c.id, Permission.READ),
    "attestations": (tables.attest_result, tables.attest_result.c.id, Permission.READ),
}
_HIDDEN: Final = frozenset({"tenant_id", "evidence"})
_router = APIRouter(responses=_PROBLEMS)


def api_app(fleet: Fleet, commander: Commander) -> FastAPI:
    """Return the API, to be mounted at `/api/v1`; *commander* signs what is ordered."""
    app = FastAPI(
        title="Casemate fleet",
        version=__version__,
        docs_url=None,  # their pages load scripts from a CDN
        redoc_url=None,
        openapi_url="/openapi.json",
        servers=[{"url": "/api/v1"}],
        root_path_in_servers=False,
        exception_handlers={
            CasemateError: _refused,
            RequestValidationError: _malformed,
            HTTPException: _routing,
            Exception: _failed,
        },
    )
    app.state.fleet = fleet
    app.state.commander = commander
    app.include_router(observe.router, responses=_PROBLEMS)
    app.include_router(bulk.router, responses=_PROBLEMS)
    app.include_router(usage.router, responses=_PROBLEMS)
    app.include_router(rollouts.router, responses=_PROBLEMS)
    app.include_router(_router)
    app.add_middleware(Once, fleet=fleet)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Put into the description what a middleware does to every POST."""
    made = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            for methods in made()["paths"].values():
                if "post" in methods:
                    methods["post"].setdefault("parameters", []).append(IDEMPOTENCY)
        return made()

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI's guide says


@_router.get("/devices")
async def list_devices(  # noqa: PLR0917 - one parameter per query field
    request: Request,
    who: Known,
    state: State | None = None,
    group: Annotated[str | None, Query(max_length=128)] = None,
    asset: Annotated[str, Query(max_length=128)] = "",
    package: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    cursor: Annotated[str, Query(max_length=512)] = "",
    limit: Limit = listing.PAGE,
) -> shapes.DevicePage:
    """List devices in the order of their asset tags; `asset` is a prefix, `package` an id of `/inventory`."""
    who.require(Permission.READ)
    fleet: Fleet = request.app.state.fleet
    chosen = listing.Filter(state, group, asset, package)
    async with fleet.store.read() as connection:
        page = await listing.page(connection, chosen, fleet.clock.wall(), cursor=cursor, size=limit)
    found = [shapes.Device.model_construct(**each) for each in page.devices]
    return shapes.DevicePage.model_construct(devices=found, cursor=page.cursor or None)


@_router.get("/devices/{device}")
async def show_device(request: Request, response: Response, who: Known, device: DeviceName) -> shapes.DeviceDetail:
    """Show one device, by id or by the asset tag it carries; its ETag is for the `If-Match` of an order."""
    who.require(Permission.READ)
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        shown = await listing.show(connection, device, fleet.clock.wall())
    response.headers["ETag"] = etag(shown["changed"])
    return shapes.DeviceDetail(**shown)


@_router.get("/devices/{device}/inventory")
async def show_inventory(request: Request, who: Known, device: DeviceName) -> shapes.Rows:
    """Show what a device has installed."""
    who.require(Permission.READ)
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        known = await devices.find(connection, device)
        items = await inventory.of(connection, known.id)
    if items is None:
        raise NotFoundError("this device sent no inventory yet")
    return shapes.Rows(items=msgspec.json.decode(items)["items"])


@_router.get("/devices/{device}/health")
async def show_health(request: Request, who: Known, device: DeviceName) -> shapes.Rows:
    """Show a device's newest day in steps of five minutes, newest first."""
    who.require(Permission.READ)
    fleet: Fleet = request.app.state.fleet
    rollup = tables.health_rollup
    async with fleet.store.read() as connection:
        known = await devices.find(connection, device)
        query = sa.select(rollup).where(rollup.c.device_id == known.id).order_by(rollup.c.bucket.desc()).limit(288)
        return shapes.Rows(items=[_shown(row) for row in (await connection.execute(query)).mappings()])


@_router.post("/devices/{device}/{order}")
async def order_device(  # noqa: PLR0917 - one parameter per part of the request
    request: Request,
    who: Known,
    device: DeviceName,
    order: Literal["approve", "quarantine", "revoke", "release", "wipe"],
    body: shapes.Order,
    if_match: IfMatch = None,
) -> shapes.Ordered:
    """Order something of a device. What needs a passkey (release, wipe) is refused here."""
    event, permission = _ORDERS[order]
    who.require(permission)
    fleet: Fleet = request.app.state.fleet
    commander: Commander = request.app.state.commander
    change = Change(event, who.actor, fleet.clock.wall(), body.reason, seen(if_match))
    async with fleet.store.write() as connection:
        known = (await devices.find(connection, device)).id
        state = await devices.apply(connection, fleet.audit, known, change, commander)
    fleet.directory.forget(known)
    fleet.hub.wake(known)
    return shapes.Ordered(id=known, state=str(state))


@_router.get("/enrolments/tokens")
async def list_tokens(request: Request, who: Known) -> shapes.Rows:
    """List enrolment tokens, never their secrets."""
    who.require(Permission.READ)
    return shapes.Rows(items=await enrolment.list_tokens(request.app.state.fleet))


@_router.post("/enrolments/tokens", status_code=201)
async def create_token(request: Request, who: Known, body: shapes.TokenRequest) -> shapes.NewToken:
    """Make a one-time enrolment token."""
    who.require(Permission.ENROL)
    wanted = Wanted(body.asset, body.group, needs_approval=body.needs_approval, seconds=body.hours * 3600.0)
    made = await enrolment.create_token(request.app.state.fleet, wanted, who.actor)
    return shapes.NewToken(id=made.id, token=made.token, expires=made.expires)


@_router.delete("/enrolments/tokens/{token}", status_code=204)
async def revoke_token(request: Request, who: Known, token: Annotated[str, Path(pattern="^[0-9a-f]{12}$")]) -> Response:
    """Make an enrolment token worthless."""
    who.require(Permission.ENROL)
    await enrolment.revoke_token(request.app.state.fleet, token, who.actor)
    return Response(status_code=204)


@_router.get("/tokens")
async def list_api_tokens(request: Request, who: Known) -> shapes.Rows:
    """List API tokens, never their secrets."""
    who.require(Permission.AUDIT)
    async with request.app.state.fleet.store.read() as connection:
        return shapes.Rows(items=await tokens.listed(connection))


@_router.delete("/tokens/{token}", status_code=204)
async def revoke_api_token(
    request: Request, who: Known, token: Annotated[str, Path(pattern="^[0-9a-f]{12}$")]
) -> Response:
    """End an API token: one's own, or anybody's with the right to manage people. It never waits for a passkey."""
    fleet: Fleet = request.app.state.fleet
    if token != who.id:
        roles.require(who.role, Permission.PEOPLE)
    async with fleet.store.write() as connection:
        await tokens.revoke(connection, fleet.audit, token, actor=who.actor, now=fleet.clock.wall())
    return Response(status_code=204)


@_router.get("/audit")
async def list_audit(
    request: Request, who: Known, before: Annotated[int | None, Query(ge=0, le=2**53)] = None, limit: Limit = 100
) -> shapes.Rows:
    """List the audit log, newest first, before the entry `before`."""
    who.require(Permission.AUDIT)
    event = tables.audit_event.c
    query = sa.select(event.seq, event.entry).order_by(event.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(event.seq < before)
    async with request.app.state.fleet.store.read() as connection:
        rows = (await connection.execute(query)).all()
    more = rows[-1].seq if rows and rows[-1].seq > 0 else None
    return shapes.Rows(items=[msgspec.json.decode(row.entry) for row in rows], cursor=more)


@_router.get("/audit/checkpoint", response_class=Response)
async def audit_checkpoint(request: Request, who: Known) -> Response:
    """Fetch the newest signed checkpoint of the audit log (C2SP tlog-checkpoint)."""
    who.require(Permission.AUDIT)
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        return Response(await fleet.audit.checkpoint(connection), media_type="text/plain; charset=utf-8")


@_router.get("/{table}")
async def list_rows(
    request: Request,
    who: Known,
    table: Literal["alerts", "grants", "attestations"],
    before: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    limit: Limit = 100,
) -> shapes.Rows:
    """List alerts, key grants or attestation results, newest first, before the id `before`."""
    rows, key, permission = _ROWS[table]
    who.require(permission)
    query = sa.select(rows).order_by(key.desc()).limit(limit)
    if before is not None:
        query = query.where(key < before)
    async with request.app.state.fleet.store.read() as connection:
        found = [_shown(row) for row in (await connection.execute(query)).mappings()]
    return shapes.Rows(items=found, cursor=found[-1]["id"] if len(found) == limit else None)


def _shown(row: sa.RowMapping) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in _HIDDEN}


async def _refused(request: Request, error: Exception) -> Response:
    fleet: Fleet = request.app.state.fleet
    refusal = error if isinstance(error, CasemateError) else OperationError("the server failed")
    fleet.metrics.refused("people", refusal)
    response = problem(refusal)
    if response.status_code == 401:  # noqa: PLR2004 - unauthorised
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _malformed(request: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": "malformed"}
    place = ".".join(map(str, first["loc"]))
    return await _refused(request, UsageError(f"{place}: {first['msg']}"))


async def _routing(request: Request, error: Exception) -> Response:
    if isinstance(error.__cause__, CasemateError):  # a body that was cut off while FastAPI read it
        return await _refused(request, error.__cause__)
    status = getattr(error, "status_code", 500)
    kinds = {404: NotFoundError("nothing is here"), 405: UsageError("not with this method")}
    response = await _refused(request, kinds.get(status, UsageError("this is no request that can be read")))
    response.status_code = status
    return response


async def _failed(request: Request, error: Exception) -> Response:
    return await _refused(request, error)
