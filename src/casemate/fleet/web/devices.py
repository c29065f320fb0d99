"""Pages about devices: what needs a person, all of them, one of them, and what a person can do to it."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import urlencode

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import RedirectResponse, Response

from casemate.errors import UsageError
from casemate.fleet import alerts, approvals, devices, listing, mail, packages, results, returns
from casemate.fleet.accounts import roles
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.devices import Change
from casemate.fleet.listing import Filter
from casemate.fleet.rollout import records
from casemate.fleet.states import CARRIES_ASSET, TRANSITIONS, Event, State
from casemate.fleet.store import tables
from casemate.fleet.web.menu import navigation
from casemate.fleet.web.visit import Visit

PAGE: Final = 50
OFFLINE: Final = 3600.0
"""Seconds without a word after which a device is called silent."""
RENEWAL: Final = 2 * 86400.0
_FEW: Final = 12

_NEEDS: Final = {
    Event.APPROVE: Permission.ENROL,
    Event.QUARANTINE: Permission.QUARANTINE,
    Event.REVOKE: Permission.QUARANTINE,
    Event.RELEASE: Permission.RELEASE,
}
"""What a person may do at once, and with which permission; a wipe goes through `approvals`."""


async def overview(visit: Visit) -> Response:
    """Show what needs a person first, then the numbers."""
    device, seen = tables.device.c, tables.device_seen.c
    enrolled = device.state == State.ENROLLED
    count = sa.select(sa.func.count()).select_from(tables.device)
    async with visit.site.fleet.store.read() as connection:
        states = await _counts(connection, sa.select(device.state, sa.func.count()).group_by(device.state))
        levels = await _counts(
            connection, sa.select(device.assurance, sa.func.count()).where(enrolled).group_by(device.assurance)
        )
        late = count.join(tables.device_seen, device.id == seen.device_id).where(
            enrolled, seen.last_seen < visit.now - OFFLINE
        )
        silent = (await connection.execute(late)).scalar_one()
        ending = count.where(enrolled, device.certificate_expires < visit.now + RENEWAL)
        expiring = (await connection.execute(ending)).scalar_one()
        told = await alerts.open_ones(connection, _FEW)
        pending = await listing.pending(connection, _FEW)
        returning = await returns.waiting(connection, _FEW)
        asked = await approvals.open_ones(connection, visit.now)
        rollouts = await records.waiting(connection)
    return visit.page(
        "overview.html",
        navigation=await navigation(visit),
        states=states,
        silent=silent,
        expiring=expiring,
        levels=levels,
        alerts=told,
        pending=pending,
        returning=returning,
        asked=asked,
        rollouts=rollouts,
        total=sum(states.get(state, 0) for state in CARRIES_ASSET),
    )


async def _counts(connection: AsyncConnection, query: sa.Select[Any]) -> dict[str, int]:
    return {row[0]: row[1] for row in await connection.execute(query)}


async def index(visit: Visit) -> Response:
    """Show a page of devices; a search is by the beginning of the asset tag."""
    asset, state, group = visit.field("search", 128), visit.field("state", 16), visit.field("group", 128)
    if state and state not in set(State):
        raise UsageError(f"no device can be {state!r}")
    package = visit.number("package")
    chosen = Filter(State(state) if state else None, group or None, asset, package)
    async with visit.site.fleet.store.read() as connection:
        having = await packages.show(connection, package) if package is not None else None
        found = await listing.page(connection, chosen, visit.now, cursor=visit.form.get("after", "")[:500], size=PAGE)
    query = {key: value for key, value in (("search", asset), ("state", state), ("group", group)) if value}
    query |= {"package": str(package)} if package is not None else {}
    after = f"?{urlencode({**query, 'after': found.cursor})}" if found.cursor else ""
    partial = visit.request.headers.get("hx-target") == "rows"
    values: dict[str, Any] = {"devices": found.devices, "after": after, "query": query, "states": list(State)}
    values["having"] = having
    if partial:
        return visit.page("devices_rows.html", **values)
    return visit.page("devices.html", navigation=await navigation(visit), **values)


async def show(visit: Visit) -> Response:
    """Show one device: its state, why its assurance is what it is, and its history."""
    name = visit.request.path_params["device"]
    grant, checkpoint = tables.key_grant.c, tables.journal_checkpoint.c
    async with visit.site.fleet.store.read() as connection:
        device = await listing.show(connection, name, visit.now)
        where = device["id"]
        attested = await results.newest(connection, where)
        grants = (
            await connection.execute(
                sa.select(grant.model, grant.granted, grant.reason, grant.created, grant.expires)
                .where(grant.device_id == where)
                .order_by(grant.created.desc())
                .limit(20)
            )
        ).all()
        journal = (
            await connection.execute(
                sa.select(checkpoint.size, checkpoint.changed, checkpoint.fault).where(checkpoint.device_id == where)
            )
        ).one_or_none()
        asked = [one for one in await approvals.open_ones(connection, visit.now) if one.device_id == where]
    reasons = json.loads(attested.reasons) if attested else []
    return visit.page(
        "device.html",
        navigation=await navigation(visit),
        device=device,
        attested=attested,
        reasons=reasons,
        grants=grants,
        journal=journal,
        asked=asked,
        actions=possible(visit, device["state"], asks_back=_waits(device)),
        alone_minutes=int(approvals.ALONE // 60),
    )


def _waits(device: dict[str, Any]) -> bool:
    return bool(device["returns"]) and device["returns"]["approved"] is None


def possible(visit: Visit, state: str, *, asks_back: bool = False) -> dict[str, bool]:
    """Return which actions a person sees on a device in *state*; *asks_back*: it asks to come back."""
    role = visit.who.role
    found = {
        event.value: (State(state), event) in TRANSITIONS and roles.allowed(role, permission)
        for event, permission in _NEEDS.items()
    }
    found["approve"] |= asks_back and roles.allowed(role, Permission.ENROL)
    found["wipe"] = (State(state), Event.WIPE) in TRANSITIONS and roles.allowed(role, Permission.WIPE)
    return found


async def change(visit: Visit, event: Event) -> Response:
    """Carry out what a person ordered, now."""
    name = visit.request.path_params["device"]
    act = Change(event, visit.who.name, visit.now, visit.field("reason"), visit.moment("seen"))
    async with visit.site.fleet.store.write() as connection:
        row = await devices.find(connection, name)
        await devices.apply(connection, visit.site.fleet.audit, row.id, act, visit.site.commander)
    return RedirectResponse(f"/devices/{row.id}", 303)


async def ask_wipe(visit: Visit) -> Response:
    """Ask for a wipe; a second person, or time, carries it out."""
    if visit.field("confirm", 128) == "":
        raise UsageError("type the asset tag to confirm")
    async with visit.site.fleet.store.write() as connection:
        row = await devices.find(connection, visit.request.path_params["device"])
        if visit.field("confirm", 128) != row.asset:
            raise UsageError(f"that is not the asset tag of this device, which is {row.asset}")
        wish = approvals.Wish("wipe", row.id, row.asset)
        known = await approvals.ask(connection, visit.site.fleet.audit, wish, visit.who, visit.now)
        letter = mail.of_wipe(known, row.asset, visit.who.name, f"{visit.site.party.origin}/devices/{row.id}")
        await mail.tell_holders(connection, visit.site.fleet, letter, Permission.WIPE)
    return RedirectResponse(f"/devices/{row.id}", 303)


async def agree(visit: Visit) -> Response:
    """Agree to what somebody else asked for; it is carried out now."""
    async with visit.site.fleet.store.write() as connection:
        device = await approvals.agree(
            connection, visit.site.fleet.audit, visit.request.path_params["approval"], visit.who, visit.now
        )
        await approvals.carry_out(connection, visit.site.fleet.audit, visit.site.commander, visit.now)
    return RedirectResponse(f"/devices/{device}", 303)


async def cancel(visit: Visit) -> Response:
    """Take back what was asked for."""
    async with visit.site.fleet.store.write() as connection:
        device = await approvals.cancel(
            connection, visit.site.fleet.audit, visit.request.path_params["approval"], visit.who, visit.now
        )
    return RedirectResponse(f"/devices/{device}", 303)
