"""Rollouts as records: made, approved, moved through the table of `states`, each change under the record's version.

Two people (or a person and the steward) who change a rollout at once cannot both succeed: whoever names a version that
is no longer the newest is told so. Every function works in the caller's transaction; roles are checked above.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import ConflictError, NotAuthorisedError, NotFoundError, PolicyDeniedError, UsageError
from casemate.fleet import keybroker
from casemate.fleet.accounts import roles
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.approvals import ALONE
from casemate.fleet.audit import Act
from casemate.fleet.changes import note_change
from casemate.fleet.context import Fleet
from casemate.fleet.rollout import cohorts, picks, releases, terms
from casemate.fleet.rollout.picks import Action
from casemate.fleet.rollout.plan import Action as Verdict
from casemate.fleet.rollout.plan import Progress
from casemate.fleet.rollout.states import ENDED, Event, State, move
from casemate.fleet.rollout.terms import Terms
from casemate.fleet.store import rollout_tables
from casemate.fleet.store import tables as base

CONTROL_MOST: Final = 500
"""Devices held back are at most so many: more would tell no more."""
LIVE: Final = (str(State.RUNNING), str(State.PAUSED))
FOR_A_PERSON: Final = (str(State.DRAFT), str(State.APPROVED), str(State.PAUSED))
"""A rollout in one of these goes on when a person says so."""
NEEDS: Final[Mapping[Event, Permission]] = {
    Event.APPROVE: Permission.APPROVE_ROLLOUT,
    Event.START: Permission.ROLLOUT,
    Event.PAUSE: Permission.APPROVE_ROLLOUT,
    Event.RESUME: Permission.ROLLOUT,
    Event.ABORT: Permission.APPROVE_ROLLOUT,
}
"""Who may what. Whoever may approve may also stop; making and going on is for who runs rollouts."""
_WHY_LIMIT: Final = 400
_UNDER_WAY: Final = ("offered", "taken")
_TOOK_IT: Final = ("taken", "installed", "good", "failed", "silent")
_rollout, _one = rollout_tables.rollout.c, rollout_tables.rollout_device.c


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """A rollout to make. *release*: its id or a channel; *group*: None for every device."""

    release: str
    group: str | None
    terms: Terms


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """Who wants what. *version*: the one they looked at; None: whatever it is now. *roll_back*: with an abort."""

    event: Event
    actor: str
    now: float
    version: float | None = None
    why: str = ""
    roll_back: bool = False


async def create(connection: AsyncConnection, fleet: Fleet, wanted: Wanted, actor: str, now: float) -> str:
    """Make a draft and return its id.

    Raises:
        NotFoundError: no such release.
        PolicyDeniedError: it cannot be rolled out.
        UsageError: the group is no name.

    """
    name = secrets.token_hex(8)
    if wanted.group is not None and not wanted.group.isprintable():
        raise UsageError("a group is printable text")
    found = await releases.find(connection, wanted.release)
    releases.require_usable(found, now)
    await keybroker.require_gates(fleet, connection, releases.gates(found))
    values = {
        "id": name,
        "release_id": found.id,
        "channel": found.channel,
        "content": found.content,
        "last_good": await _last_good(connection, wanted.group, found.content),
        "group_name": wanted.group,
        "state": str(State.DRAFT),
        "version": 1,
        "terms": terms.encode(wanted.terms),
        "progress": terms.encode_progress(Progress()),
        "created": now,
        "created_by": actor,
        "changed": now,
    }
    await connection.execute(sa.insert(rollout_tables.rollout).values(values))
    detail = {"rollout": name, "release": found.id, "channel": found.channel, "generation": found.generation}
    detail |= {"group": wanted.group, "terms": msgspec.to_builtins(wanted.terms)}
    await fleet.audit.append(connection, Act(actor, "rollout.create", detail=detail), now)
    await note_change(connection, "", "rollout", now)
    return name


async def change(connection: AsyncConnection, fleet: Fleet, name: str, wanted: Move) -> State:
    """Move the rollout *name* through *wanted*, with everything that follows from it; returns its new state.

    Raises:
        NotFoundError: no such rollout.
        ConflictError: somebody changed it since the version that was looked at; the table has no such move; another
            rollout is under way for the same devices.
        NotAuthorisedError: its author approves it.
        PolicyDeniedError: its release cannot be rolled out any more.

    """
    row = await find(connection, name, lock=True)
    if wanted.version is not None and wanted.version != row.version:
        raise ConflictError(
            f"the rollout was changed meanwhile: it is {row.state}", hint="look at it again, then decide again"
        )
    state = move(State(row.state), wanted.event)
    values: dict[str, Any] = {"state": str(state), "version": row.version + 1, "changed": wanted.now}
    values |= await _before(connection, fleet, row, wanted)
    if why := _line(wanted.why):
        values["why"] = why
    if state in ENDED:
        values |= {"ended": wanted.now, "roll_back": wanted.roll_back}
    done = await connection.execute(
        sa.update(rollout_tables.rollout).where(_rollout.id == name, _rollout.version == row.version).values(**values)
    )
    if not done.rowcount:
        raise ConflictError("the rollout was changed meanwhile", hint="look at it again, then decide again")
    await _after(connection, fleet, row, wanted)
    detail: dict[str, Any] = {"rollout": name, "from": row.state, "to": str(state)}
    detail |= {"why": why} if why else {}
    detail |= {"roll_back": True} if wanted.roll_back else {}
    await fleet.audit.append(connection, Act(wanted.actor, f"rollout.{wanted.event}", detail=detail), wanted.now)
    await note_change(connection, "", "rollout", wanted.now)
    return state


def needs_proof(event: Event, *, group: str | None, verdict: str, roll_back: bool = False) -> bool:
    """Return whether a session is not enough for *event*, and its person shows the passkey again.

    So it is with what gives every device another generation, goes on although the numbers said stop, or takes a
    generation from devices that have it. Pausing, and an abort that leaves devices alone, wait for nothing.
    """
    return (
        (event is Event.START and group is None)
        or (event is Event.RESUME and verdict == Verdict.STOP)
        or (event is Event.ABORT and roll_back)
    )


async def find(connection: AsyncConnection, name: str, *, lock: bool = False) -> sa.Row[Any]:
    """Return the rollout with the id *name*.

    Raises:
        NotFoundError: there is none.

    """
    query = sa.select(rollout_tables.rollout).where(_rollout.id == name)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFoundError(f"no rollout {name!r}", hint="`casemate fleet rollout list` shows them")
    return row


async def listed(connection: AsyncConnection, limit: int = 200) -> list[dict[str, Any]]:
    """Return rollouts, newest first."""
    query = sa.select(rollout_tables.rollout).order_by(_rollout.created.desc(), _rollout.id).limit(limit)
    return [described(row) for row in await connection.execute(query)]


async def waiting(connection: AsyncConnection, limit: int = 12) -> list[dict[str, Any]]:
    """Return rollouts that wait for a person, the newest change first."""
    query = sa.select(rollout_tables.rollout).where(_rollout.state.in_(FOR_A_PERSON))
    return [described(row) for row in await connection.execute(query.order_by(_rollout.changed.desc()).limit(limit))]


async def show(connection: AsyncConnection, name: str) -> dict[str, Any]:
    """Return one rollout, what became of its batches, and why devices failed.

    Raises:
        NotFoundError: there is none.

    """
    row = await find(connection, name)
    counted = sa.select(_one.batch, _one.state, sa.func.count().label("devices")).where(
        _one.rollout_id == name, _one.state != "control"
    )
    batches: dict[int, dict[str, int]] = {}
    for each in await connection.execute(counted.group_by(_one.batch, _one.state)):
        batches.setdefault(each.batch, {})[each.state] = each.devices
    failed = (
        sa.select(_one.device_id, base.device.c.asset, _one.state, _one.why, _one.changed)
        .join(base.device, base.device.c.id == _one.device_id)
        .where(_one.rollout_id == name, _one.state.in_(("failed", "silent")))
        .order_by(_one.changed.desc())
        .limit(100)
    )
    return {
        **described(row),
        "batches": [{"batch": number, **states} for number, states in sorted(batches.items())],
        "failures": [each._asdict() for each in await connection.execute(failed)],
    }


def described(row: sa.Row[Any]) -> dict[str, Any]:
    """Return a rollout as people and scripts see it."""
    given, progress = terms.decode(bytes(row.terms)), terms.decode_progress(bytes(row.progress))
    plan = given.plan(max(row.devices, 1))
    hidden = {"tenant_id", "progress", "group_name", "last_good"}
    shown = {key: value for key, value in row._asdict().items() if key not in hidden}
    bad = row.failed + row.silent
    return shown | {
        "group": row.group_name,
        "terms": msgspec.to_builtins(given),
        "sizes": list(plan.batches()),
        "trusted": progress.trusted_at is not None,
        "pending": max(0, row.offered - row.good - bad),
        "ratio": round(plan.test.ratio(bad, row.good), 3),
        "bounds": [round(plan.test.lower, 3), round(plan.test.upper, 3)],
    }


def _line(text: str) -> str:
    """Return *text* as one line that no terminal and no database takes for something else."""
    return "".join(each if each.isprintable() else " " for each in text).strip()[:_WHY_LIMIT]


# --- what moves need and cause ----------------------------------------------------------------------------------------


async def _before(connection: AsyncConnection, fleet: Fleet, row: sa.Row[Any], wanted: Move) -> dict[str, Any]:
    """Refuse what may not be; returns what else the move writes."""
    if wanted.event is Event.APPROVE:
        await _require_second(connection, row, wanted)
        return {"approved": wanted.now, "approved_by": wanted.actor}
    if wanted.event in {Event.START, Event.RESUME}:
        release = await releases.find(connection, row.release_id)
        releases.require_usable(release, wanted.now)
        await keybroker.require_gates(fleet, connection, releases.gates(release))
        await _require_alone(connection, row)
    if wanted.event is Event.START:
        return {"started": wanted.now, "verdict": "", "why": "it begins"}
    if wanted.event is Event.ABORT and wanted.roll_back and not row.last_good:
        raise PolicyDeniedError(
            "there is nothing these devices could go back to",
            hint="no finished rollout gave them a generation; promote a good one and roll that out",
        )
    return {}


async def _require_second(connection: AsyncConnection, row: sa.Row[Any], wanted: Move) -> None:
    """Refuse an author who approves, unless nobody else could and there was time to be stopped."""
    if wanted.actor != row.created_by:
        return
    holders = [role.value for role in roles.Role if roles.allowed(role.value, Permission.APPROVE_ROLLOUT)]
    user = base.user.c
    query = sa.select(sa.func.count()).where(user.role.in_(holders), user.state == "active", user.name != wanted.actor)
    if (await connection.execute(query)).scalar_one():
        raise NotAuthorisedError("its author cannot approve a rollout", hint="ask somebody with the same right")
    left = row.created + ALONE - wanted.now
    if left > 0:
        raise NotAuthorisedError(
            f"alone, an author approves after {ALONE / 60:.0f} minutes: {left:.0f} s are left",
            hint="until then anybody may abort it",
        )


async def _require_alone(connection: AsyncConnection, row: sa.Row[Any]) -> None:
    """Refuse a second rollout for the same devices: neither could be judged."""
    await connection.execute(sa.select(base.audit_tree.c.id).with_for_update())  # of two that begin at once one waits
    query = sa.select(_rollout.id, _rollout.group_name).where(_rollout.state.in_(LIVE), _rollout.id != row.id)
    for other in await connection.execute(query):
        if None in {row.group_name, other.group_name} or other.group_name == row.group_name:
            raise ConflictError(
                f"rollout {other.id} is under way for these devices", hint="let it end, or abort it first"
            )


async def _after(connection: AsyncConnection, fleet: Fleet, row: sa.Row[Any], wanted: Move) -> None:
    """Do what a move means for devices."""
    store, now = fleet.store, wanted.now
    if wanted.event is Event.START:
        await _hold_back(connection, row, now)
    elif wanted.event is Event.RESUME:
        await _offer_again(connection, fleet, row, now)
    elif wanted.event in {Event.PAUSE, Event.STOP, Event.ABORT}:
        await picks.recall(connection, store, row.id, _UNDER_WAY, now)
        never = sa.and_(_one.rollout_id == row.id, _one.state == "offered")
        await connection.execute(sa.delete(rollout_tables.rollout_device).where(never))
        if wanted.event is Event.ABORT and wanted.roll_back:
            query = sa.select(_one.device_id).where(_one.rollout_id == row.id, _one.state.in_(_TOOK_IT))
            devices = [each.device_id for each in await connection.execute(query.order_by(_one.device_id))]
            await picks.tell(connection, store, devices, Action.BACK, rollout=row.id, now=now)
    elif wanted.event is Event.FINISH:
        await picks.spread(connection, row.id, row.group_name, now)


async def _hold_back(connection: AsyncConnection, row: sa.Row[Any], now: float) -> None:
    """Choose the control group: drawn by the rollout's own id, among the devices that are there."""
    given = terms.decode(bytes(row.terms))
    if not given.control:
        return
    query = present(row.group_name, now - given.come)
    chosen: list[str] = []
    for each in await connection.execute(query):
        if cohorts.in_control(row.id, each.id, given.control):
            chosen.append(each.id)
            if len(chosen) >= CONTROL_MOST:
                break
    rows = [{"rollout_id": row.id, "device_id": each, "state": "control", "changed": now} for each in chosen]
    if rows:
        await connection.execute(sa.insert(rollout_tables.rollout_device), rows)


async def _offer_again(connection: AsyncConnection, fleet: Fleet, row: sa.Row[Any], now: float) -> None:
    """Tell devices that were stopped in the middle of taking it to go on."""
    query = sa.select(_one.device_id).where(_one.rollout_id == row.id, _one.state == "taken")
    devices = [each.device_id for each in await connection.execute(query.order_by(_one.device_id))]
    await picks.tell(connection, fleet.store, devices, Action.TAKE, rollout=row.id, now=now)
    again = sa.and_(_one.rollout_id == row.id, _one.state == "taken")
    await connection.execute(sa.update(rollout_tables.rollout_device).where(again).values(changed=now))


def present(group: str | None, since: float) -> sa.Select[Any]:
    """Return the query for the ids of devices of *group* that serve and were heard of *since*."""
    device, seen = base.device.c, base.device_seen.c
    query = sa.select(device.id).join_from(base.device, base.device_seen, device.id == seen.device_id)
    query = query.where(device.state == "enrolled", seen.last_seen > since)
    return query if group is None else query.where(device.group_name == group)


async def _last_good(connection: AsyncConnection, group: str | None, content: str) -> str:
    """Return the content that the newest finished rollout gave these devices."""
    everybody = _rollout.group_name.is_(None)
    meant = everybody if group is None else sa.or_(everybody, _rollout.group_name == group)
    query = sa.select(_rollout.content).where(_rollout.state == str(State.DONE), meant, _rollout.content != content)
    return (await connection.execute(query.order_by(_rollout.ended.desc()).limit(1))).scalar_one_or_none() or ""
