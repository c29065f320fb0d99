"""Pages of an order for many devices: what is wanted, for which devices it is, and how far it got."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from casemate.errors import UsageError
from casemate.fleet import bulk
from casemate.fleet.accounts import roles
from casemate.fleet.listing import Filter
from casemate.fleet.states import State
from casemate.fleet.web.menu import navigation
from casemate.fleet.web.visit import Visit


async def ask(visit: Visit) -> Response:
    """Ask what is wanted of which devices."""
    role = visit.who.role
    actions = [name for name, action in bulk.ACTIONS.items() if roles.allowed(role, action.permission)]
    query = {name: visit.field(name, 128) for name in ("asset", "group", "state", "package")}
    return visit.page(
        "bulk_ask.html", navigation=await navigation(visit), actions=actions, query=query, states=list(State)
    )


async def look(visit: Visit) -> Response:
    """Freeze the devices, and show them."""
    action, state = visit.field("action", 16), visit.field("state", 16)
    if action not in bulk.ACTIONS:
        raise UsageError("choose what is to happen")
    if state and state not in set(State):
        raise UsageError(f"no device can be {state!r}")
    roles.require(visit.who.role, bulk.ACTIONS[action].permission)
    group = visit.field("group", 128) or None
    chosen = Filter(State(state) if state else None, group, visit.field("asset", 128), visit.number("package"))
    wish = bulk.Wish(action, chosen, visit.field("to_group", 64), visit.field("reason"))
    async with visit.site.fleet.store.write() as connection:
        known = await bulk.show(connection, wish, visit.who.name, visit.now)
    return RedirectResponse(f"/bulk/{known}", 303)


async def show(visit: Visit) -> Response:
    """Show an order: what it would do, or how far it is."""
    async with visit.site.fleet.store.read() as connection:
        order = await bulk.describe(connection, visit.request.path_params["order"])
    roles.require(visit.who.role, bulk.ACTIONS[order.action].permission)
    return visit.page("bulk.html", navigation=await navigation(visit), order=order)


async def confirm(visit: Visit) -> Response:
    """Let it begin."""
    fleet, known = visit.site.fleet, visit.request.path_params["order"]
    count = visit.number("count")
    if count is None:
        raise UsageError("type how many devices it is for")
    async with fleet.store.read() as connection:
        action = await bulk.action_of(connection, known)
    visit.demand(action.permission, proof=action.proof)
    async with fleet.store.write() as connection:
        await bulk.confirm(connection, fleet, known, count, visit.who.name)
    await bulk.carry_out(fleet, visit.site.commander, known, bulk.AT_ONCE)
    return RedirectResponse(f"/bulk/{known}", 303)
