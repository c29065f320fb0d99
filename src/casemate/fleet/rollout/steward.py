"""Who looks after rollouts: counts what became of devices, asks `plan.decide`, and writes down what it says.

One look is one transaction: it settles devices, counts, decides, and persists decision and consequences together. A
server that dies in between leaves the last look; the next one, here or on another replica, sees the same numbers and
decides the same. The row's lock and version keep two looks apart, and a look apart from a person.
"""

from __future__ import annotations

import heapq
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import ConflictError
from casemate.fleet.changes import note_change
from casemate.fleet.context import Fleet
from casemate.fleet.rollout import cohorts, compare, picks, records, releases, settle, terms
from casemate.fleet.rollout.picks import Action
from casemate.fleet.rollout.plan import Action as Verdict
from casemate.fleet.rollout.plan import Decision, decide
from casemate.fleet.rollout.records import Move
from casemate.fleet.rollout.states import Event, State
from casemate.fleet.rollout.terms import Terms
from casemate.fleet.store import rollout_tables
from casemate.fleet.store import tables as base

LOOK_SECONDS: Final = 2.0
STEWARD: Final = "steward"
_rollout, _one = rollout_tables.rollout.c, rollout_tables.rollout_device.c
_ENDS: Final = {Verdict.STOP: Event.STOP, Verdict.FINISH: Event.FINISH}


async def look(fleet: Fleet) -> int:
    """Look at every rollout that is under way; returns how many there are.

    Raises:
        Exception: what the last look that failed raised, after all others were taken.

    """
    async with fleet.store.read() as connection:
        query = sa.select(_rollout.id).where(_rollout.state.in_(records.LIVE)).order_by(_rollout.id)
        names = [row.id for row in await connection.execute(query)]
    failed: Exception | None = None
    for name in names:
        try:
            async with fleet.store.write() as connection:
                await look_at(connection, fleet, name)
        except Exception as error:  # noqa: BLE001 - one that cannot be looked at must not stop the others; told below
            failed = error
    if failed:
        raise failed
    return len(names)


async def unattended(connection: AsyncConnection, now: float) -> float:
    """Return the seconds since a rollout that is under way was looked at, of the one that waits longest; 0: none waits.

    Every server tells: the one that should look may be the one that does not.
    """
    since = sa.func.min(sa.func.coalesce(_rollout.looked, _rollout.started))
    oldest = (await connection.execute(sa.select(since).where(_rollout.state == str(State.RUNNING)))).scalar()
    return max(0.0, now - oldest) if oldest is not None else 0.0


async def look_at(connection: AsyncConnection, fleet: Fleet, name: str) -> Decision | None:
    """Take one look at the rollout *name* in the caller's transaction; None when there is nothing to decide."""
    row = await records.find(connection, name, lock=True)
    now = fleet.clock.wall()  # not before the lock: whoever waited for it must not judge by the time it began to wait
    if row.state not in records.LIVE:
        return None
    given = terms.decode(bytes(row.terms))
    await settle.devices(connection, row, given, now)
    await settle.ask(connection, row, given, now=now, since=row.looked or now)
    counted = await settle.count(connection, row, given, now)
    decision = None
    values: dict[str, Any] = {}
    if row.state == State.RUNNING:
        decision, values = await _decide(connection, row, given, counted, now)
    values |= {"offered": counted.tally.offered, "good": counted.tally.good, "failed": counted.tally.failed}
    values |= {"silent": counted.tally.silent, "control": counted.tally.control}
    values |= {"control_failed": counted.tally.control_failed}
    news = {key: value for key, value in values.items() if getattr(row, key) != value}
    done = await connection.execute(
        sa.update(rollout_tables.rollout)
        .where(_rollout.id == name, _rollout.version == row.version)
        .values(**news, looked=now)
    )
    if not done.rowcount:
        raise ConflictError("the rollout was changed during a look")
    if news:
        await note_change(connection, "", "rollout", now)
    if decision is None:
        return None
    if event := _ENDS.get(decision.action):
        await records.change(connection, fleet, name, Move(event, STEWARD, now, row.version, decision.why))
    else:
        await _widen(connection, fleet, row, given, decision.progress.limit - counted.claimed, now=now)
    return decision


async def _decide(
    connection: AsyncConnection, row: sa.Row[Any], given: Terms, counted: settle.Counted, now: float
) -> tuple[Decision, dict[str, Any]]:
    """Return the decision, and what of it the rollout's row keeps."""
    tally, progress = counted.tally, terms.decode_progress(bytes(row.progress))
    devices = row.devices
    settled = not tally.pending and not counted.open
    if settled or not devices:
        devices = counted.claimed + await _candidates(connection, row, given, now)
    why = releases.fault(await releases.find(connection, row.release_id), now)
    if why:
        decision = Decision(Verdict.STOP, progress, f"it cannot be offered any more: {why}")
    elif not devices:
        decision = Decision(Verdict.WAIT, progress, "no device of this group has been heard of")
    else:
        compared = await compare.groups(connection, row.id, row.content) if settled and tally.offered else {}
        decision = decide(given.plan(devices), progress, tally, compared)
    return decision, {
        "devices": devices,
        "progress": terms.encode_progress(decision.progress),
        "batch": decision.progress.batch,
        "ceiling": min(decision.progress.limit, devices),
        "verdict": str(decision.action),
        "why": decision.why,
    }


def _open_to(row: sa.Row[Any], given: Terms, now: float) -> sa.Select[Any]:
    """Return the query for devices that could be offered it and were not yet, or did not come for it."""
    asked = sa.select(_one.device_id).where(_one.rollout_id == row.id)
    return records.present(row.group_name, now - given.come).where(base.device.c.id.not_in(asked))


async def _candidates(connection: AsyncConnection, row: sa.Row[Any], given: Terms, now: float) -> int:
    query = sa.select(sa.func.count()).select_from(_open_to(row, given, now).subquery())
    return int((await connection.execute(query)).scalar_one())


async def _widen(
    connection: AsyncConnection, fleet: Fleet, row: sa.Row[Any], given: Terms, wanted: int, *, now: float
) -> None:
    """Offer it to the next *wanted* devices in the rollout's own order, while its window is open."""
    if wanted <= 0 or (given.window and not given.window.open_at(now)):
        return
    ids = [each.id for each in await connection.execute(_open_to(row, given, now))]
    chosen = sorted(heapq.nsmallest(wanted, ids, key=lambda each: (cohorts.position(row.id, each), each)))
    if not chosen:
        return
    batch = terms.decode_progress(bytes((await records.find(connection, row.id)).progress)).batch
    rows = [
        {"rollout_id": row.id, "device_id": each, "state": "offered", "batch": batch, "changed": now} for each in chosen
    ]
    await connection.execute(sa.insert(rollout_tables.rollout_device), rows)
    await picks.tell(connection, fleet.store, chosen, Action.TAKE, rollout=row.id, now=now)
