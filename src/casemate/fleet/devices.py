"""Changing a device's record: one transition of the table in `states`, its consequences, and its audit entry, together.

Every function works in the caller's transaction. Who may call them is decided above (command line, API).
"""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import ConflictError, NotFoundError, PolicyDeniedError, UsageError
from casemate.fleet import returns, states
from casemate.fleet.audit import Act, AuditLog
from casemate.fleet.changes import note_change
from casemate.fleet.commands import Commander
from casemate.fleet.states import Event, State
from casemate.fleet.store import tables
from casemate.formats.envelope import Verb

_VERBS = {Event.QUARANTINE: Verb.QUARANTINE, Event.RELEASE: Verb.RELEASE, Event.WIPE: Verb.WIPE}
_ENDS_CERTIFICATES = (State.REVOKED, State.REPLACED, State.WIPED)


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """Who wants what, when and why."""

    event: Event
    actor: str
    now: float
    reason: str = ""
    seen: float | None = None
    """The device's `changed` as they saw it; None: whatever it is."""


async def find(connection: AsyncConnection, name: str, *, lock: bool = False) -> sa.Row[Any]:
    """Return the row of the device with this id, or else the one that carries this asset tag, or carried it last.

    Raises:
        NotFoundError: neither.

    """
    device = tables.device.c
    query = sa.select(tables.device)
    by_id = (
        query.where(device.id == name.lower())
        if _is_id(name)
        else query.where(device.asset == name)
        .order_by(device.state.in_(states.CARRIES_ASSET).desc(), device.created.desc(), device.id)
        .limit(1)
    )
    row = (await connection.execute(by_id.with_for_update() if lock else by_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"no device {name!r}", hint="`casemate fleet device list` shows them")
    return row


async def apply(
    connection: AsyncConnection, audit: AuditLog, device: str, change: Change, commander: Commander | None = None
) -> State:
    """Move *device* (an id or an asset tag) through *change*; returns its new state.

    An approval of a device that asks to come back changes no state.

    Raises:
        NotFoundError: no such device.
        ConflictError: it changed since the caller looked.
        PolicyDeniedError: not in its state.
        UsageError: the change is a command and nobody here can sign one.

    """
    row = await find(connection, device, lock=True)
    if change.seen is not None and row.changed != change.seen:
        raise ConflictError(
            f"somebody changed this device meanwhile: it is {row.state}", hint="look at it again, then decide"
        )
    if change.event is Event.APPROVE and row.state in returns.MAY:
        detail = {"return": True} | ({"reason": change.reason} if change.reason else {})
        act = Act(change.actor, "device.approve", row.id, row.asset, detail)
        if await returns.approve(connection, audit, row, act, change.now):
            return State(row.state)
    new = states.after(State(row.state), change.event)
    verb = _VERBS.get(change.event)
    if verb is not None and commander is None:
        raise UsageError("this process cannot sign commands")
    await connection.execute(
        sa.update(tables.device).where(tables.device.c.id == row.id).values(state=str(new), changed=change.now)
    )
    if new in _ENDS_CERTIFICATES:
        await _end_certificates(connection, row.id)
    if verb is not None and commander is not None:
        await commander.issue(connection, row.id, verb, actor=change.actor, now=change.now, reason=change.reason)
    await note_change(connection, row.id, "state", change.now)
    detail = {"from": row.state, "to": str(new)} | ({"reason": change.reason} if change.reason else {})
    await audit.append(connection, Act(change.actor, f"device.{change.event}", row.id, row.asset, detail), change.now)
    return new


async def move(connection: AsyncConnection, audit: AuditLog, device: str, group: str, *, actor: str, now: float) -> str:
    """Put *device* (an id or an asset tag) into *group* ("": none); returns its id.

    Raises:
        NotFoundError: no such device.
        PolicyDeniedError: it carries its tag no more.

    """
    row = await find(connection, device, lock=True)
    if row.state not in states.CARRIES_ASSET:
        raise PolicyDeniedError(f"a device that is {row.state} is in no group any more")
    changed = sa.update(tables.device).where(tables.device.c.id == row.id)
    await connection.execute(changed.values(group_name=group, changed=now))
    await note_change(connection, row.id, "state", now)
    detail = {"from": row.group_name, "to": group}
    await audit.append(connection, Act(actor, "device.move", row.id, row.asset, detail), now)
    return str(row.id)


async def create(
    connection: AsyncConnection, audit: AuditLog, *, asset: str, group: str, state: State, by: str, key: str, now: float
) -> str:
    """Make the record of a device that carries *asset* from now on, and return its id.

    The one that carried the tag before is replaced; the tag's history goes on. *by* is "token" or "tpm", *key* the
    SHA-256 (hex) of the public key it enrols with.
    """
    device = tables.device.c
    older = await connection.execute(
        sa.select(device.id).where(device.asset == asset, device.state.in_(states.CARRIES_ASSET)).with_for_update()
    )
    before = [row.id for row in older]
    name = str(uuid.uuid4())
    for each in before:
        await apply(connection, audit, each, Change(Event.REPLACE, "server", now, f"replaced by {name}"))
    await connection.execute(
        sa.insert(tables.device).values(
            id=name,
            asset=asset,
            group_name=group,
            state=str(state),
            enrolled_by=by,
            created=now,
            changed=now,
            replaces=before[-1] if before else None,
            key_digest=key,
        )
    )
    await note_change(connection, name, "state", now)
    return name


async def _end_certificates(connection: AsyncConnection, device: str) -> None:
    cert = tables.device_cert.c
    await connection.execute(
        sa.update(tables.device_cert).where(cert.device_id == device, cert.state == "active").values(state="revoked")
    )


def _is_id(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name.lower()
    except ValueError:
        return False
