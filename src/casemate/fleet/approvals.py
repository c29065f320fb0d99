"""The two-person rule: what destroys needs a second person, or a second passkey and time to change one's mind.

A single owner is not locked out: what they asked for alone is carried out after `ALONE` seconds, which is time for
whoever stole the session to be seen, and anybody may cancel until then. Everything is in the audit log.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import BusyError, NotAuthorisedError, NotFoundError, PolicyDeniedError
from casemate.fleet import devices
from casemate.fleet.accounts import roles
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.accounts.sessions import Person
from casemate.fleet.audit import Act, AuditLog
from casemate.fleet.commands import Commander
from casemate.fleet.devices import Change
from casemate.fleet.states import Event
from casemate.fleet.store import tables

ALONE: Final = 600.0
LIFE: Final = 24 * 3600.0
NEEDS: Final = {"wipe": (Permission.WIPE, Event.WIPE)}
"""What can be asked for: who may, and what it does."""

_approval = tables.approval.c


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked for: *action* of `NEEDS`, on which device."""

    action: str
    device: str
    asset: str


async def ask(connection: AsyncConnection, audit: AuditLog, wish: Wish, person: Person, now: float) -> str:
    """Ask for *wish*; returns the id of the approval.

    Raises:
        NotAuthorisedError: the role may not.
        BusyError: somebody asked already.

    """
    permission, _ = NEEDS[wish.action]
    roles.require(person.role, permission)
    for row in await open_ones(connection, now):
        if (row.action, row.device_id) == (wish.action, wish.device):
            raise BusyError(f"a {wish.action} of this device waits already", hint="agree to it, or cancel it")
    name = secrets.token_hex(16)
    delay = 0.0 if await _others(connection, person, permission) else ALONE
    await connection.execute(
        sa.insert(tables.approval).values(
            id=name,
            action=wish.action,
            device_id=wish.device,
            asked_by=person.id,
            asked=now,
            not_before=now + delay,
            expires=now + LIFE,
            state="asked",
        )
    )
    detail = {"alone": bool(delay)}
    await audit.append(
        connection, Act(person.name, f"approval.{wish.action}.asked", wish.device, wish.asset, detail), now
    )
    return name


async def agree(connection: AsyncConnection, audit: AuditLog, name: str, person: Person, now: float) -> str:
    """Agree as the second person; returns the device. `carry_out` does the rest.

    Raises:
        NotFoundError: nothing such waits.
        NotAuthorisedError: the same person, or a role that may not.

    """
    row = await _waiting(connection, name, now)
    permission, _ = NEEDS[row.action]
    roles.require(person.role, permission)
    if row.asked_by == person.id:
        raise NotAuthorisedError("the second person must be another one", hint="ask somebody with the same right")
    await devices.find(connection, row.device_id, lock=True)  # before the log, like everybody who changes a device
    await connection.execute(
        sa.update(tables.approval).where(_approval.id == name).values(state="agreed", agreed_by=person.id, agreed=now)
    )
    await audit.append(connection, Act(person.name, f"approval.{row.action}.agreed", row.device_id), now)
    return str(row.device_id)


async def cancel(connection: AsyncConnection, audit: AuditLog, name: str, person: Person, now: float) -> str:
    """Take back what was asked for; anybody who could have asked may. Returns the device.

    Raises:
        NotFoundError: nothing such waits.

    """
    row = await _waiting(connection, name, now)
    roles.require(person.role, NEEDS[row.action][0])
    await connection.execute(sa.update(tables.approval).where(_approval.id == name).values(state="cancelled"))
    await audit.append(connection, Act(person.name, f"approval.{row.action}.cancelled", row.device_id), now)
    return str(row.device_id)


async def carry_out(connection: AsyncConnection, audit: AuditLog, commander: Commander, now: float) -> int:
    """Do what was agreed to, and what one person alone asked for long enough ago; returns how many."""
    due = sa.or_(
        _approval.state == "agreed",
        sa.and_(_approval.state == "asked", _approval.not_before > _approval.asked, _approval.not_before <= now),
    )
    # locked: one that is cancelled in this moment is not carried out, and no two carry out the same
    query = sa.select(tables.approval).where(due, _approval.expires > now).with_for_update(skip_locked=True)
    rows = (await connection.execute(query)).all()
    for row in rows:
        actor = await _name_of(connection, row.asked_by)
        second = f", agreed by {await _name_of(connection, row.agreed_by)}" if row.agreed_by else ""
        change = Change(NEEDS[row.action][1], actor, now, f"asked for by {actor}{second}")
        try:
            await devices.apply(connection, audit, row.device_id, change, commander)
            outcome = "done"
        except PolicyDeniedError:  # the device was revoked, replaced or wiped meanwhile
            outcome = "cancelled"
        await connection.execute(sa.update(tables.approval).where(_approval.id == row.id).values(state=outcome))
    return len(rows)


async def open_ones(connection: AsyncConnection, now: float) -> Sequence[sa.Row[Any]]:
    """Return what waits for a second person or for its time, oldest first, with who asked and for which asset."""
    query = (
        sa.select(tables.approval, tables.user.c.name.label("asker"), tables.device.c.asset)
        .join(tables.user, tables.user.c.id == _approval.asked_by)
        .join(tables.device, tables.device.c.id == _approval.device_id)
        .where(_approval.state == "asked", _approval.expires > now)
        .order_by(_approval.asked)
    )
    return (await connection.execute(query)).all()


async def _waiting(connection: AsyncConnection, name: str, now: float) -> sa.Row[Any]:
    query = sa.select(tables.approval).where(_approval.id == name, _approval.state == "asked", _approval.expires > now)
    row = (await connection.execute(query.with_for_update())).one_or_none()
    if row is None:
        raise NotFoundError("nothing waits under this name", hint="it was agreed to, cancelled, or is too old")
    return row


async def _others(connection: AsyncConnection, person: Person, permission: Permission) -> bool:
    """Say whether there is anybody else who could agree."""
    holders = [role.value for role in roles.Role if roles.allowed(role.value, permission)]
    user = tables.user.c
    query = sa.select(sa.func.count()).where(user.role.in_(holders), user.state == "active", user.id != person.id)
    return bool((await connection.execute(query)).scalar_one())


async def _name_of(connection: AsyncConnection, user_id: str) -> str:
    return (await connection.execute(sa.select(tables.user.c.name).where(tables.user.c.id == user_id))).scalar() or "?"
