"""What became of the devices of a rollout: who is done soaking, who went silent, who lied; and the counts.

    offered    may have it, has not come     -> taken (it was handed the pick) | absent (it did not come in time)
    taken      fetches and tries it          -> installed | failed (its own signed word) | silent (no word in time)
    installed  runs it, soaks                -> good | failed (runs or proves something else, is not well) | silent
    control    is held back, to compare with

A word is not believed against what is seen: who says that it runs the generation and checks in with another, or whose
TPM proves another, has failed; who has a TPM and proves nothing is never good (`proof`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.changes import note_change
from casemate.fleet.rollout import proof
from casemate.fleet.rollout.picks import WOKEN
from casemate.fleet.rollout.plan import Tally
from casemate.fleet.rollout.states import State
from casemate.fleet.rollout.terms import Terms
from casemate.fleet.store import rollout_tables
from casemate.fleet.store import tables as base

_one, _seen, _device = rollout_tables.rollout_device.c, base.device_seen.c, base.device.c
_OUT: Final = ("revoked", "replaced", "wiped", "wiping", "quarantined")


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """*open*: offered and not come yet."""

    tally: Tally
    open: int

    @property
    def claimed(self) -> int:
        """How many of a batch are taken by name."""
        return self.tally.offered + self.open


async def devices(connection: AsyncConnection, row: sa.Row[Any], given: Terms, now: float) -> None:
    """Move every device of the rollout *row* whose time has come."""
    mine = _one.rollout_id == row.id
    ended = sa.select(_device.id).where(_device.state.in_(_OUT))
    under_way = _one.state.in_(("offered", "taken", "installed"))
    await _move(connection, sa.and_(mine, under_way, _one.device_id.in_(ended)), "absent", "it is out", now)
    late = sa.and_(mine, _one.state == "offered", _one.changed < now - given.come)
    await _move(connection, late, "absent", "it did not come for it", now)
    if row.state == State.RUNNING:  # whoever was told to stop in the middle says nothing, and that is no silence
        mute = sa.and_(mine, _one.state == "taken", _one.changed < now - _allowance(given))
        await _move(connection, mute, "silent", "it took it and said nothing", now)
    running = sa.and_(mine, _one.state == "installed")
    other = sa.select(_seen.device_id).where(
        _seen.device_id == _one.device_id,
        _seen.last_seen > _one.installed,
        _seen.generation != "",
        _seen.generation != row.content,
    )
    liars = sa.and_(running, sa.exists(other))
    await _move(connection, liars, "failed", "it says that it runs this and checks in with something else", now)
    proven = proof.found(row.content, now)
    why = sa.case(proof.LIES, value=proven)
    await _move(connection, sa.and_(running, proven.in_(tuple(proof.LIES))), "failed", why, now)
    due = sa.and_(running, _one.installed <= now - given.soak)
    heard = sa.select(_seen.device_id).where(
        _seen.device_id == _one.device_id, _seen.last_seen >= _one.installed + given.soak
    )
    well = sa.exists(heard.where(_seen.state == "ok"))
    await _move(connection, sa.and_(due, well, proven.in_(proof.GOOD)), "good", "", now)
    ill = sa.exists(heard.where(_seen.state != "ok"))
    await _move(connection, sa.and_(due, ill), "failed", "it is not well at the end of its soak", now)
    silent = sa.and_(running, _one.installed <= now - given.soak - given.patience)
    await _move(connection, sa.and_(silent, well), "silent", proof.MUTE, now)
    await _move(connection, silent, "silent", "it was not heard of after its soak", now)


def _allowance(given: Terms) -> float:
    """Return how long a device may take from its pick to its word: with a window, until the next one has ended."""
    return given.install + (86_400.0 if given.window else 0.0)


async def _move(
    connection: AsyncConnection, which: sa.ColumnElement[bool], state: str, why: str | sa.ColumnElement[str], now: float
) -> None:
    change = sa.update(rollout_tables.rollout_device).where(which).values(state=state, why=why, changed=now)
    await connection.execute(change.execution_options(synchronize_session=False))


async def ask(connection: AsyncConnection, row: sa.Row[Any], given: Terms, *, now: float, since: float) -> None:
    """Wake the devices whose soak ended after *since*: nobody is called silent who was only not due to call yet."""
    ended = sa.and_(_one.installed > since - given.soak, _one.installed <= now - given.soak)
    query = sa.select(_one.device_id).where(_one.rollout_id == row.id, _one.state == "installed", ended)
    for each in await connection.execute(query.order_by(_one.device_id).limit(WOKEN)):
        await note_change(connection, each.device_id, "pick", now)


async def count(connection: AsyncConnection, row: sa.Row[Any], given: Terms, now: float) -> Counted:
    """Return the counts as they are now."""
    query = sa.select(_one.state, sa.func.count().label("devices")).where(_one.rollout_id == row.id)
    found = {each.state: each.devices for each in await connection.execute(query.group_by(_one.state))}
    took = sum(found.get(state, 0) for state in ("taken", "installed", "good", "failed", "silent"))
    tally = Tally(
        offered=took,
        good=found.get("good", 0),
        failed=found.get("failed", 0),
        silent=found.get("silent", 0),
        control=found.get("control", 0),
        control_failed=await _ill_control(connection, row, given, now) if found.get("control") else 0,
    )
    return Counted(tally, found.get("offered", 0))


async def _ill_control(connection: AsyncConnection, row: sa.Row[Any], given: Terms, now: float) -> int:
    """Count devices of the control group that are not well, or were not heard of for a soak and the patience."""
    ill = sa.or_(_seen.last_seen < now - given.soak - given.patience, _seen.state != "ok")
    joined = sa.join(rollout_tables.rollout_device, base.device_seen, _seen.device_id == _one.device_id)
    query = sa.select(sa.func.count()).select_from(joined).where(_one.rollout_id == row.id, _one.state == "control")
    return int((await connection.execute(query.where(ill))).scalar_one())
