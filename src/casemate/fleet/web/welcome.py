"""The way in: from an empty fleet to its first device, with the very command to type."""

from __future__ import annotations

import enum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from casemate.errors import NotFoundError, UsageError
from casemate.fleet import enrolment, setup
from casemate.fleet.accounts import roles
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.enrolment import Wanted
from casemate.fleet.states import State
from casemate.fleet.store import tables
from casemate.fleet.web.menu import navigation
from casemate.fleet.web.visit import Visit

_TOKEN: Final = 12


class Step(enum.StrEnum):
    """How far a device has come."""

    WAITING = "waiting"
    """Nobody has used the token."""
    ASKS = "asks"
    """It was used; a person must say yes."""
    ENROLLED = "enrolled"
    """It is one of ours and has not called yet."""
    HERE = "here"
    """It called."""
    OVER = "over"
    """The token ended, or was revoked, before anybody used it."""


def step_of(*, token: str, expired: bool, device: str | None, seen: bool) -> Step:
    """Return how far: the states of a token and of the device that used it, and whether that device has called."""
    if token == "used":  # noqa: S105 - a state
        if device == State.PENDING:
            return Step.ASKS
        return Step.HERE if seen else Step.ENROLLED
    return Step.WAITING if token == "open" and not expired else Step.OVER  # noqa: S105 - a state


async def is_empty(connection: AsyncConnection) -> bool:
    """Say whether the fleet never had a device."""
    return (await connection.execute(sa.select(tables.device.c.id).limit(1))).first() is None


async def first_page(connection: AsyncConnection, role: str) -> str:
    """Return where somebody begins: at the first device, if there is none and they may enrol one."""
    begins = await is_empty(connection) and roles.allowed(role, Permission.ENROL)
    return "/welcome" if begins else "/"


async def show(visit: Visit) -> Response:
    """Show what to do first."""
    return await _page(visit, None, None)


async def make_token(visit: Visit) -> Response:
    """Make a token for the device, and show what to type on it, once."""
    asset = visit.field("asset", 64)
    if not asset:
        raise UsageError("the device needs a name: its asset tag")
    made = await enrolment.create_token(visit.site.fleet, Wanted(asset), visit.who.name)
    return await _page(visit, made, await _progress(visit, made.id))


async def progress(visit: Visit) -> Response:
    """Show how far the device of a token has come; an open page asks when it hears of a change."""
    found = await _progress(visit, visit.field("token", _TOKEN))
    return visit.page("welcome_progress.html", progress=found)


async def _page(visit: Visit, made: enrolment.NewToken | None, found: dict[str, Any] | None) -> Response:
    listeners = setup.listeners(visit.site.fleet)
    return visit.page(
        "welcome.html",
        navigation=await navigation(visit),
        made=made,
        progress=found,
        address=setup.enrol_url(visit.site.fleet),
        is_local=any(one.is_local for one in listeners if one.name != "people"),
        may=roles.allowed(visit.who.role, Permission.ENROL),
    )


async def _progress(visit: Visit, name: str) -> dict[str, Any]:
    token, device, seen = tables.enrolment_token.c, tables.device.c, tables.device_seen.c
    columns = (token.id, token.asset, token.state, token.expires, token.used_by, seen.last_seen)
    query = (
        sa.select(*columns, device.state.label("device_state"))
        .join(tables.device, device.id == token.used_by, isouter=True)
        .join(tables.device_seen, seen.device_id == token.used_by, isouter=True)
        .where(token.id == name)
    )
    async with visit.site.fleet.store.read() as connection:
        row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFoundError("no such token", hint="make one")
    step = step_of(
        token=row.state,
        expired=row.expires <= visit.now,
        device=row.device_state,
        seen=row.last_seen is not None,
    )
    return {**row._asdict(), "step": step}
