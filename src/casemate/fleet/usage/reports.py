"""Taking usage reports, and reading what they add up to.

A report is added to the sums of its question and group and then forgotten: the database knows who reported about a
period, which refuses a second report, and never what. Both are one transaction.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from casemate.errors import NotFoundError
from casemate.fleet.exchange import DeviceCall, device_route
from casemate.fleet.states import Use
from casemate.fleet.store import Store, usage_tables
from casemate.fleet.usage import estimate
from casemate.formats import usage
from casemate.formats.usage import QUESTIONS, Question, VerifiedReport

_KEPT_PERIODS = 61
_TAKEN, _DOUBLE = 204, 409


async def report(call: DeviceCall) -> Response:
    """Take a device's report of a period: 204; 409 when it has reported that period."""
    verified = usage.verify_report(usage.parse(call.body), call.now)
    async with call.fleet.store.write() as connection:
        taken = await take(call.fleet.store, connection, call.device.id, call.device.group, verified)
    call.fleet.metrics.usage_reports.labels("taken" if taken else "double").inc()
    return Response(status_code=_TAKEN if taken else _DOUBLE)


async def take(store: Store, connection: AsyncConnection, device: str, group: str, report_: VerifiedReport) -> bool:
    """Add *report_* of *device* to the sums of *group*; returns False when it has reported that period."""
    insert = postgresql.insert if store.is_postgresql else sqlite.insert
    once = insert(usage_tables.usage_reporter).values(device_id=device, period=report_.period).on_conflict_do_nothing()
    if not (await connection.execute(once)).rowcount:
        return False
    rows = [
        {
            "period": report_.period,
            "version": usage.VERSION,
            "question": report_.question.name,
            "group_name": group,
            "answer": number,
            "reports": 1,
            "ones": bit,
        }
        for number, bit in enumerate(report_.bits)
    ]
    sums = usage_tables.usage_sum
    add = insert(sums).values(rows)  # in the order of the answers everywhere: two reports cannot deadlock
    more = {name: sums.c[name] + add.excluded[name] for name in ("reports", "ones")}
    key = ["period", "version", "question", "group_name", "answer"]
    await connection.execute(add.on_conflict_do_update(index_elements=key, set_=more))
    return True


async def prune(connection: AsyncConnection, now: float) -> None:
    """Forget who reported about periods that cannot be reported any more, and sums of five years ago."""
    current = usage.period_of(now)
    reporter, sums = usage_tables.usage_reporter, usage_tables.usage_sum
    await connection.execute(sa.delete(reporter).where(reporter.c.period < current - 2))
    await connection.execute(sa.delete(sums).where(sums.c.period < current - _KEPT_PERIODS))


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants to see: None is the newest period with enough reports, and the whole fleet."""

    period: int | None = None
    group: str | None = None


async def summary(connection: AsyncConnection, wanted: Wanted, now: float) -> dict[str, Any]:
    """Return what is known of a period, as `/api/v1/usage` says it.

    Unless one is asked for it is the newest with enough reports to say anything: the first device whose clock is ahead
    does not hide what is known.

    Raises:
        NotFoundError: nobody reported about that period, or from that group.

    """
    sums = usage_tables.usage_sum.c
    current = sums.version == usage.VERSION
    periods = await _periods(connection)
    enough = [period for period, reports in periods.items() if reports >= estimate.FEWEST]
    chosen = next(iter([*enough, *periods]), None) if wanted.period is None else wanted.period
    if wanted.period is not None and wanted.period not in periods:
        raise NotFoundError("nobody reported about that period")
    reporting = sa.select(sums.group_name).where(current, sums.period == chosen).distinct()
    groups = sorted(await connection.scalars(reporting))
    if wanted.group is not None and wanted.group not in groups:
        raise NotFoundError("nobody reported from that group")
    found = await _sums(connection, chosen, wanted.group) if chosen is not None else {}
    return {
        "period": chosen,
        "begins": None if chosen is None else chosen * usage.PERIOD,
        "ends": None if chosen is None else usage.ends(chosen),
        "complete": chosen is not None and now >= usage.ends(chosen + 1),
        "group": wanted.group,
        "devices": sum(reports for reports, _ in found.values()),
        "epsilon": usage.EPSILON,
        "confidence": estimate.CONFIDENCE,
        "fewest": estimate.FEWEST,
        "periods": list(periods),
        "groups": groups,
        "questions": [_question(row, *found.get(row.name, (0, []))) for row in QUESTIONS.values()],
    }


async def _periods(connection: AsyncConnection) -> dict[int, int]:
    """Return how many reports there are about each period, the newest first."""
    sums = usage_tables.usage_sum.c
    counted = sa.select(sums.period, sa.func.sum(sums.reports).label("reports"))
    query = counted.where(sums.version == usage.VERSION, sums.answer == 0)  # each report is in one row of answer 0
    rows = await connection.execute(query.group_by(sums.period).order_by(sums.period.desc()))
    return {row.period: int(row.reports) for row in rows}


async def _sums(connection: AsyncConnection, period: int, group: str | None) -> dict[str, tuple[int, list[int]]]:
    """Return, by question, how many reports there are and how many have the bit of each answer."""
    sums = usage_tables.usage_sum.c
    total = (sa.func.sum(sums.reports).label("reports"), sa.func.sum(sums.ones).label("ones"))
    query = sa.select(sums.question, sums.answer, *total).where(sums.period == period, sums.version == usage.VERSION)
    if group is not None:
        query = query.where(sums.group_name == group)
    found: dict[str, tuple[int, list[int]]] = {}
    rows = await connection.execute(query.group_by(sums.question, sums.answer).order_by(sums.answer))
    for row in rows:
        ones = [*found.get(row.question, (0, []))[1], int(row.ones)]
        found[row.question] = int(row.reports), ones
    return found


def _question(question: Question, reports: int, ones: list[int]) -> dict[str, Any]:
    shown = reports >= estimate.FEWEST
    found = estimate.shares(question, reports, ones) if shown else ()
    return {
        "question": question.name,
        "asks": question.asks,
        "reports": reports if shown else None,
        "shown": shown,
        "one_device_moves": round(estimate.sway(question, reports), 6) if shown else None,
        "answers": [
            {
                "answer": share.answer,
                "share": round(share.estimate, 6),
                "standard_error": round(share.standard_error, 6),
                "low": round(share.low, 6),
                "high": round(share.high, 6),
            }
            for share in found
        ],
    }


ROUTES = [device_route("POST", "/device/v1/usage", Use.REPORT, report)]
