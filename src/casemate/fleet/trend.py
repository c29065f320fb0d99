"""The fleet over time: one row for every five minutes, so that a chart of a month is one small query.

What is counted at a moment (how many are online) is the newest look of its five minutes; what happens (a key refused)
is a sum over them. A row that is missing means that no server ran: charts show a gap, never a line across it.

How fast devices answer is what each measured with prompts of its release's own health gate when it took what it runs.
How long people waited is not in it: a number that is there only when somebody asked tells when they did.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import UsageError
from casemate.fleet import alerts
from casemate.fleet.context import Fleet
from casemate.fleet.seen import BUCKET
from casemate.fleet.states import State
from casemate.fleet.store import rollout_tables, tables

SAMPLE_SECONDS: Final = 60.0
KEPT: Final = 400 * 86400.0
"""Seconds a row is kept: a year can be compared with the one before."""
LATE: Final = 2
"""Buckets that are looked at again: check-ins are written behind."""
SPANS: Final = {
    "6h": (6 * 3600, BUCKET),
    "day": (86400, BUCKET),
    "week": (7 * 86400, 1800),
    "month": (30 * 86400, 7200),
}
"""What can be looked at: seconds back from now, and seconds of a step."""
_ATTESTED: Final = ("L2", "L3")

_device, _seen, _sample = tables.device.c, tables.device_seen.c, tables.fleet_sample.c
LEVELS: Final = ("enrolled", "online", "attested", "degraded", "quarantined", "alerts")
"""What is counted at a moment."""
EVENTS: Final = ("keys_granted", "keys_refused", "integrity_failures")
"""What is summed over the step."""
_HIGHEST: Final = ("temperature_max", "load_max")
SPEED: Final = ("first_token_median", "first_token_p95")
"""Milliseconds to the first token: of half of the devices at most, of 19 in 20 at most. Over a step the first is
averaged and the second the highest."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trend:
    """Steps of *seconds*, oldest first, from *begin* to *end*. A step without a sample is not in *steps*."""

    span: str
    seconds: int
    begin: int
    end: int
    steps: list[dict[str, Any]]


async def sample(fleet: Fleet) -> None:
    """Write how the fleet is now; looks at the buckets before again, to which late news belongs."""
    now = fleet.clock.wall()
    bucket = int(now) // BUCKET * BUCKET
    async with fleet.store.read() as connection:  # nobody else's writing waits for it
        speed = await _speed(connection, bucket)
    async with fleet.store.write() as connection:
        levels = {**await _levels(connection, now, fleet.device_count), **speed}
        for each in range(bucket - LATE * BUCKET, bucket + 1, BUCKET):
            values = await _sums(connection, each)
            if each == bucket:
                values |= levels
            await _put(connection, each, values)


async def over(connection: AsyncConnection, span: str, now: float) -> Trend:
    """Return the trend over one of `SPANS` until *now*.

    Raises:
        UsageError: not one of them.

    """
    if span not in SPANS:
        raise UsageError(f"no such span: {span!r}", hint=f"one of: {', '.join(SPANS)}")
    length, step = SPANS[span]
    end = int(now) // step * step + step
    begin = end - length
    size: sa.ColumnElement[int] = sa.literal_column(
        str(step)
    )  # ours, and no parameter: PostgreSQL must see the same text in GROUP BY
    start = (_sample.bucket - _sample.bucket % size).label("start")
    columns = [
        *(sa.func.avg(_sample[name]).label(name) for name in LEVELS),
        *(sa.func.sum(_sample[name]).label(name) for name in EVENTS),
        *(sa.func.max(_sample[name]).label(name) for name in _HIGHEST),
        sa.func.avg(_sample.first_token_median).label("first_token_median"),
        sa.func.max(_sample.first_token_p95).label("first_token_p95"),
        sa.func.min(_sample.online).label("online_min"),
    ]
    query = sa.select(start, *columns).where(_sample.bucket >= begin, _sample.bucket < end).group_by(start)
    rows = (await connection.execute(query.order_by(start))).mappings()
    return Trend(span, step, begin, end, [_shown(row) for row in rows])


async def prune(connection: AsyncConnection, now: float) -> None:
    """Forget what is too old."""
    await connection.execute(sa.delete(tables.fleet_sample).where(_sample.bucket < int(now - KEPT)))


async def _levels(connection: AsyncConnection, now: float, count: int) -> dict[str, int]:
    enrolled = _device.state == State.ENROLLED
    here = sa.and_(enrolled, _seen.last_seen >= now - alerts.offline_seconds(count))
    proved = sa.and_(enrolled, _device.assurance.in_(_ATTESTED), _device.assurance_expires > now)
    query = sa.select(
        _number(enrolled).label("enrolled"),
        _number(here).label("online"),
        _number(proved).label("attested"),
        _number(sa.and_(here, _seen.state == "degraded")).label("degraded"),
        _number(_device.state == State.QUARANTINED).label("quarantined"),
        sa.select(sa.func.count()).where(tables.alert.c.closed.is_(None)).scalar_subquery().label("alerts"),
    ).select_from(sa.join(tables.device, tables.device_seen, _device.id == _seen.device_id, isouter=True))
    return dict((await connection.execute(query)).mappings().one())


async def _speed(connection: AsyncConnection, bucket: int) -> dict[str, float | None]:
    """Return `SPEED` as of now, once for *bucket*: nearest ranks among devices whose newest word measured it.

    It changes when devices take a release and not within minutes, and every device has to be ranked for it.
    """
    if (await connection.execute(sa.select(_sample.bucket).where(_sample.bucket == bucket))).first():
        return {}
    word = rollout_tables.device_generation.c
    rank = sa.func.row_number().over(order_by=word.first_token_ms).label("rank")
    both = sa.join(rollout_tables.device_generation, tables.device, word.device_id == _device.id)
    ranked = (
        sa.select(word.first_token_ms.label("value"), rank, sa.func.count().over().label("count"))
        .select_from(both)
        .where(_device.state == State.ENROLLED, word.outcome == "good", word.first_token_ms.is_not(None))
        .subquery()
    )
    share = {"first_token_median": (1, 2), "first_token_p95": (19, 20)}  # rounded up: at least so many are as quick
    nearest = {name: (ranked.c.count * part + whole - 1) // whole for name, (part, whole) in share.items()}
    columns = [sa.func.max(sa.case((ranked.c.rank == at, ranked.c.value))).label(name) for name, at in nearest.items()]
    return dict((await connection.execute(sa.select(*columns))).mappings().one())


async def _sums(connection: AsyncConnection, bucket: int) -> dict[str, Any]:
    grant, rollup = tables.key_grant.c, tables.health_rollup.c
    asked = sa.select(_number(grant.granted), _number(~grant.granted)).where(
        grant.created >= bucket, grant.created < bucket + BUCKET
    )
    granted, refused = (await connection.execute(asked)).one()
    health = sa.select(
        sa.func.coalesce(sa.func.sum(rollup.integrity_failures), 0).label("integrity_failures"),
        sa.func.max(sa.case((rollup.temperature_max > 0, rollup.temperature_max))).label("temperature_max"),
        sa.func.max(rollup.load_max).label("load_max"),
    ).where(rollup.bucket == bucket)
    found = (await connection.execute(health)).mappings().one()
    return {"keys_granted": granted, "keys_refused": refused, **found}


async def _put(connection: AsyncConnection, bucket: int, values: dict[str, Any]) -> None:
    table = tables.fleet_sample
    done = await connection.execute(sa.update(table).where(_sample.bucket == bucket).values(**values))
    if not done.rowcount and LEVELS[0] in values:  # a bucket of which nobody took the levels stays a gap
        await connection.execute(sa.insert(table).values(bucket=bucket, **values))


def _number(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)


def _shown(row: sa.RowMapping) -> dict[str, Any]:
    levels = {name: round(float(row[name]), 1) for name in LEVELS}
    events = {name: int(row[name]) for name in (*EVENTS, "online_min")}
    highest = {name: None if row[name] is None else round(float(row[name]), 1) for name in (*_HIGHEST, *SPEED)}
    return {"time": int(row["start"]), **levels, **events, **highest}
