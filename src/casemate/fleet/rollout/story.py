"""How a verdict came about, for a person to look at: the path of the sequential test, and the comparisons of ranks.

Nothing is decided here. What `plan.decide` saw is read again from the records, in the order in which it came.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.rollout import compare, records, terms
from casemate.fleet.rollout.failures import Hypotheses
from casemate.fleet.rollout.plan import rank_alpha
from casemate.fleet.rollout.states import Event
from casemate.fleet.store import rollout_tables, tables

MOST: Final = 3000
"""Devices of a path: the test decides long before."""
POINTS: Final = 240
JUDGED: Final = ("good", "failed", "silent")
_AUDIT: Final = 500
_ACTIONS: Final = ("rollout.create", *(f"rollout.{event}" for event in Event))
_one = rollout_tables.rollout_device.c


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """After *devices* had been judged, of which *failed* had failed, the log-likelihood ratio was *ratio*."""

    devices: int
    failed: int
    ratio: float


@dataclasses.dataclass(frozen=True, slots=True)
class Compared:
    """One hardware model and one number: medians with the release to those without; None: too few to compare."""

    what: str
    ratio: float | None
    p: float | None
    worse: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """*lower* and *upper* are the bounds of the test, *good* and *bad* the failure rates it tells apart."""

    good: float
    bad: float
    lower: float
    upper: float
    path: list[Point]
    alpha: float
    comparisons: list[Compared]


async def evidence(connection: AsyncConnection, name: str) -> Evidence:
    """Return what speaks for and against the release of the rollout *name*.

    Raises:
        NotFoundError: there is no such rollout.

    """
    row = await records.find(connection, name)
    plan = terms.decode(bytes(row.terms)).plan(max(row.devices, 1))
    compared = await compare.groups(connection, row.id, row.content)
    alpha = rank_alpha(plan, sum(one is not None for one in compared.values()))
    found = [
        Compared(what, one.ratio, one.p, one.worse(alpha)) if one else Compared(what, None, None, worse=False)
        for what, one in sorted(compared.items())
    ]
    test = plan.test
    path = thinned(path_of(test, await _judged(connection, name)), POINTS)
    return Evidence(test.good, test.bad, test.lower, test.upper, path, alpha, found)


def path_of(test: Hypotheses, judged: Iterable[bool]) -> list[Point]:
    """Return the path of *test* over devices in the order in which they were judged: True for one that failed."""
    points, failed = [Point(0, 0, 0.0)], 0
    for count, bad in enumerate(judged, 1):
        failed += bad
        points.append(Point(count, failed, round(test.ratio(failed, count - failed), 4)))
    return points


def thinned(path: Sequence[Point], most: int) -> list[Point]:
    """Return about *most* points of *path*: the ends, every jump up with the point before it, and some between."""
    if len(path) <= most:
        return list(path)
    every = max(1, len(path) // most)
    jumps = {index for index in range(1, len(path)) if path[index].failed > path[index - 1].failed}
    kept = {0, len(path) - 1, *range(0, len(path), every)}
    if len(jumps) <= most:
        kept |= jumps | {index - 1 for index in jumps}
    return [path[index] for index in sorted(kept)]


async def history(connection: AsyncConnection, name: str) -> list[dict[str, Any]]:
    """Return what people and the steward did to the rollout *name*, newest first."""
    event = tables.audit_event.c
    query = sa.select(event.entry).where(event.action.in_(_ACTIONS)).order_by(event.seq.desc()).limit(_AUDIT)
    entries = [msgspec.json.decode(row.entry) for row in await connection.execute(query)]
    return [entry for entry in entries if entry["detail"].get("rollout") == name]


async def _judged(connection: AsyncConnection, name: str) -> list[bool]:
    """Return who failed, in the order in which devices were judged; each state is read along its index."""
    lists, horizon = [], float("inf")
    for state in JUDGED:
        query = sa.select(_one.changed).where(_one.rollout_id == name, _one.state == state)
        moments = (await connection.execute(query.order_by(_one.changed).limit(MOST))).scalars().all()
        if len(moments) == MOST:
            horizon = min(horizon, moments[-1])  # what came later is not known of this state
        lists.append([(moment, state != "good") for moment in moments])
    merged = heapq.merge(*lists)
    return [failed for moment, failed in merged if moment <= horizon][:MOST]
