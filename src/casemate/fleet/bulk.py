"""One order for many devices: it is shown for which, somebody says how many they are, and exactly that is done.

The set is frozen when it is shown: a device that fits the filter a moment later is not in it, and one whose state does
not fit the order any more is left as it is. Carried out in chunks, each a transaction; a server that stops in the
middle goes on when it starts. The order is one entry in the audit log with all its members; each device's own change is
one more.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import ConflictError, NotAuthorisedError, NotFoundError, PolicyDeniedError, UsageError
from casemate.fleet import devices, listing
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.audit import Act
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.devices import Change
from casemate.fleet.listing import Filter
from casemate.fleet.states import CARRIES_ASSET, TRANSITIONS, Event, State
from casemate.fleet.store import desk, tables
from casemate.ids import parse_name

MOST: Final = 10_000
SAMPLE: Final = 20
LIFE: Final = 600.0
"""Seconds after which what was shown must be looked at again."""
CHUNK: Final = 50
AT_ONCE: Final = 2 * CHUNK
"""How many a request carries out itself; the rest follows within seconds."""
KEPT: Final = 30 * 86400.0


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """What can be ordered: who may, in which states, and the event it is (None: it moves to another group)."""

    permission: Permission
    states: tuple[State, ...]
    event: Event | None
    proof: bool = False
    """In the console the passkey is shown again, although for one device it need not be: it cannot be taken back."""


def _of_event(permission: Permission, event: Event, *, proof: bool = False) -> Action:
    return Action(permission, tuple(state for state, known in TRANSITIONS if known is event), event, proof)


ACTIONS: Final = {
    "quarantine": _of_event(Permission.QUARANTINE, Event.QUARANTINE),
    "release": _of_event(Permission.RELEASE, Event.RELEASE),
    "revoke": _of_event(Permission.QUARANTINE, Event.REVOKE, proof=True),
    "move": Action(Permission.ENROL, CARRIES_ASSET, None),
}
"""A wipe is not here: it is asked for one device at a time, of two people."""

_bulk, _member, _device = desk.bulk.c, desk.bulk_member.c, tables.device.c


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of which devices. *group*: where a move goes."""

    action: str
    chosen: Filter
    group: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """An order as people see it. *sample*: the first assets; *left_out*: devices of the filter that it does not fit."""

    id: str
    action: str
    group: str
    filter: str
    reason: str
    count: int
    left_out: int
    state: str
    created_by: str
    expires: float
    done: int
    refused: int
    sample: tuple[str, ...]


def parse(wish: Wish) -> Wish:
    """Return *wish* when it makes sense.

    Raises:
        UsageError: no such action, or a move without a group.

    """
    if wish.action not in ACTIONS:
        raise UsageError(f"{wish.action!r} is nothing for many devices", hint=f"possible: {', '.join(ACTIONS)}")
    if (wish.action == "move") != bool(wish.group):
        raise UsageError("a move, and nothing else, names the group it goes to")
    return dataclasses.replace(wish, group=parse_name(wish.group, "group")) if wish.group else wish


async def show(connection: AsyncConnection, wish: Wish, actor: str, now: float) -> str:
    """Freeze the devices that *wish* is for; returns the id of the order, which does nothing yet.

    Raises:
        NotFoundError: there is none.
        UsageError: more than `MOST`.

    """
    wish = parse(wish)
    conditions = listing.conditions(wish.chosen)
    fits: sa.ColumnElement[bool] = _device.state.in_(ACTIONS[wish.action].states)
    if wish.action == "move":
        fits = sa.and_(fits, _device.group_name != wish.group)
    query = sa.select(_device.id, _device.asset).where(*conditions, fits).order_by(_device.asset, _device.id)
    rows = (await connection.execute(query.limit(MOST + 1))).all()
    if not rows:
        raise NotFoundError("this is for no device", hint="look at the filter, and at what state they are in")
    if len(rows) > MOST:
        raise UsageError(f"this is for more than {MOST} devices", hint="take them group by group")
    every = sa.select(sa.func.count()).select_from(tables.device).where(*conditions)
    known = secrets.token_hex(16)
    values: dict[str, Any] = {
        "id": known,
        "action": wish.action,
        "argument": wish.group,
        "filter": _in_words(wish.chosen),
    }
    values |= {"size": len(rows), "left_out": (await connection.execute(every)).scalar_one() - len(rows)}
    values |= {"reason": wish.reason, "created": now, "created_by": actor, "expires": now + LIFE, "state": "shown"}
    await connection.execute(sa.insert(desk.bulk).values(**values))
    await connection.execute(
        sa.insert(desk.bulk_member),
        [
            {"bulk_id": known, "position": place, "device_id": row.id, "asset": row.asset}
            for place, row in enumerate(rows)
        ],
    )
    return known


async def describe(connection: AsyncConnection, known: str) -> Shown:
    """Return the order *known*.

    Raises:
        NotFoundError: there is none.

    """
    row = await _find(connection, known)
    outcomes = sa.select(_member.outcome, sa.func.count()).where(_member.bulk_id == known).group_by(_member.outcome)
    counts: dict[str | None, int] = {each[0]: each[1] for each in await connection.execute(outcomes)}
    first = sa.select(_member.asset).where(_member.bulk_id == known).order_by(_member.position).limit(SAMPLE)
    return Shown(
        id=row.id,
        action=row.action,
        group=row.argument,
        filter=row.filter,
        reason=row.reason,
        count=row.size,
        left_out=row.left_out,
        state=row.state,
        created_by=row.created_by,
        expires=row.expires,
        done=counts.get("done", 0),
        refused=counts.get("refused", 0),
        sample=tuple((await connection.execute(first)).scalars()),
    )


async def action_of(connection: AsyncConnection, known: str) -> Action:
    """Return what the order *known* does, and who may confirm it."""
    return ACTIONS[(await _find(connection, known)).action]


async def confirm(connection: AsyncConnection, fleet: Fleet, known: str, count: int, actor: str) -> None:
    """Let the order begin, by who looked at it and says how many devices it is for.

    Raises:
        ConflictError: it began already, or was looked at too long ago.
        NotAuthorisedError: somebody else looked.
        UsageError: it is for another number of devices.

    """
    now = fleet.clock.wall()
    row = await _find(connection, known, lock=True)
    if row.state != "shown" or row.expires <= now:
        raise ConflictError("this order has begun, or was looked at too long ago", hint="look again")
    if row.created_by != actor:
        raise NotAuthorisedError("who confirms an order is who looked at it", hint="look at it yourself")
    if row.size != count:
        raise UsageError(f"this is for {row.size} devices and not {count}")
    values = {"state": "running", "confirmed": now, "confirmed_by": actor}
    await connection.execute(sa.update(desk.bulk).where(_bulk.id == known).values(**values))
    members = sa.select(_member.asset).where(_member.bulk_id == known).order_by(_member.position)
    detail = {"bulk": known, "filter": row.filter, "count": row.size, "reason": row.reason, "group": row.argument}
    detail["assets"] = list((await connection.execute(members)).scalars())
    await fleet.audit.append(connection, Act(actor, f"bulk.{row.action}", detail=detail), now)


async def carry_out(fleet: Fleet, commander: Commander, known: str, most: int = MOST) -> int:
    """Do up to *most* of what is left of an order that was confirmed; returns how many were looked at."""
    looked = 0
    while looked < most:
        async with fleet.store.write() as connection:
            taken = await _chunk(connection, fleet, commander, known)
        looked += taken
        if not taken:
            break
    return looked


async def sweep(fleet: Fleet, commander: Commander) -> int:
    """Go on with every order that was confirmed, and forget old ones; returns how many devices were looked at."""
    now = fleet.clock.wall()
    async with fleet.store.read() as connection:
        running = (await connection.execute(sa.select(_bulk.id).where(_bulk.state == "running"))).scalars().all()
    looked = sum([await carry_out(fleet, commander, known) for known in running])
    await _forget(fleet, now)
    return looked


async def _chunk(connection: AsyncConnection, fleet: Fleet, commander: Commander, known: str) -> int:
    row = await _find(connection, known, lock=True)  # one server at a time
    if row.state != "running":
        return 0
    left = sa.and_(_member.bulk_id == known, _member.outcome.is_(None))
    members = (
        await connection.execute(
            sa.select(_member.position, _member.device_id).where(left).order_by(_member.position).limit(CHUNK)
        )
    ).all()
    if not members:
        await _finish(connection, fleet, row)
        return 0
    # every record before the audit log: whoever changes one device takes them in the same order
    ids = [member.device_id for member in members]
    await connection.execute(sa.select(_device.id).where(_device.id.in_(ids)).order_by(_device.id).with_for_update())
    for member in members:
        outcome = await _one(connection, fleet, commander, row, member.device_id)
        mine = sa.and_(_member.bulk_id == known, _member.position == member.position)
        await connection.execute(sa.update(desk.bulk_member).where(mine).values(outcome=outcome))
    return len(members)


async def _one(connection: AsyncConnection, fleet: Fleet, commander: Commander, row: sa.Row[Any], device: str) -> str:
    now, event = fleet.clock.wall(), ACTIONS[row.action].event
    reason = f"{row.reason} [bulk {row.id}]".strip()
    try:
        if event is None:
            await devices.move(connection, fleet.audit, device, row.argument, actor=row.confirmed_by, now=now)
        else:
            change = Change(event, row.confirmed_by, now, reason)
            await devices.apply(connection, fleet.audit, device, change, commander)
    except (PolicyDeniedError, NotFoundError):  # somebody else was there meanwhile
        return "refused"
    return "done"


async def _finish(connection: AsyncConnection, fleet: Fleet, row: sa.Row[Any]) -> None:
    await connection.execute(sa.update(desk.bulk).where(_bulk.id == row.id).values(state="done"))
    done = sa.select(sa.func.count()).where(_member.bulk_id == row.id, _member.outcome == "done")
    count = (await connection.execute(done)).scalar_one()
    detail = {"bulk": row.id, "done": count, "refused": row.size - count}
    await fleet.audit.append(
        connection, Act(row.confirmed_by, f"bulk.{row.action}.done", detail=detail), fleet.clock.wall()
    )


async def _forget(fleet: Fleet, now: float) -> None:
    never = sa.and_(_bulk.state == "shown", _bulk.expires <= now)
    old = sa.or_(never, sa.and_(_bulk.state == "done", _bulk.created < now - KEPT))
    async with fleet.store.read() as connection:
        gone: Sequence[str] = (await connection.execute(sa.select(_bulk.id).where(old).limit(100))).scalars().all()
    if gone:
        async with fleet.store.write() as connection:
            await drop(connection, gone)


async def drop(connection: AsyncConnection, gone: Sequence[str]) -> None:
    """Forget orders."""
    await connection.execute(sa.delete(desk.bulk_member).where(_member.bulk_id.in_(gone)))
    await connection.execute(sa.delete(desk.bulk).where(_bulk.id.in_(gone)))


async def _find(connection: AsyncConnection, known: str, *, lock: bool = False) -> sa.Row[Any]:
    query = sa.select(desk.bulk).where(_bulk.id == known)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFoundError("no such order", hint="it was not confirmed in time, or is long done")
    return row


def _in_words(chosen: Filter) -> str:
    rows = (("state", chosen.state), ("group", chosen.group), ("asset", chosen.asset), ("package", chosen.package))
    return ", ".join(f"{name} {value}" for name, value in rows if value not in {None, ""}) or "every device"
