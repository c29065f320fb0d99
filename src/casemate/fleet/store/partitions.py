"""Tables that grow with every minute, kept in days: on PostgreSQL a day is a partition, and is dropped when it is over.

Partitions lie in a schema of their own, made two days ahead. What belongs to no day that was made (restored rows, a
clock that jumped) goes into the rest, and from there into its day. SQLite has no partitions: there what is old is
deleted a slice at a time, so that no check-in waits for long.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.store.database import Store

DAY: Final = 86400
AHEAD: Final = 2
SLICE: Final = 5_000
SCHEMA: Final = "casemate_days"
_LOCK: Final = 0x44_41_59_53


@dataclasses.dataclass(frozen=True, slots=True)
class Daily:
    """A table whose *column* (seconds since the epoch, integer) says to which day a row belongs."""

    table: str
    column: str
    kept: int
    """Seconds."""


ROLLUPS_KEPT: Final = 30 * DAY
DAILY: Final = (Daily("health_rollup", "bucket", ROLLUPS_KEPT),)


async def keep(store: Store, now: float) -> None:
    """Make the days that come, and forget those whose time is over.

    Raises:
        OperationError: the database does not answer.

    """
    for each in DAILY:
        if store.is_postgresql:
            async with store.write() as connection:
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")  # servers that start at once
                await _make(connection, each, now)
                await _drop(connection, each, now)
        else:
            await _delete(store, each, now)


def name_of(daily: Daily, day: int) -> str:
    """Return the partition of *day* (days since the epoch)."""
    moment = dt.datetime.fromtimestamp(day * DAY, dt.UTC)
    return f"{SCHEMA}.{daily.table}_{moment:%Y%m%d}"


def rest_of(daily: Daily) -> str:
    """Return the partition of rows that belong to no day that was made."""
    return f"{SCHEMA}.{daily.table}_rest"


async def _make(connection: AsyncConnection, daily: Daily, now: float) -> None:
    today, there, rest = int(now) // DAY, await days(connection, daily), rest_of(daily)
    stray = sa.text(f"SELECT DISTINCT {daily.column} / {DAY} FROM {rest}")  # noqa: S608 - names of ours, here and below
    oldest = (int(now) - daily.kept) // DAY
    found = {int(day) for day in (await connection.execute(stray)).scalars()}
    for day in sorted({*range(today, today + AHEAD + 1), *(each for each in found if oldest <= each <= today + AHEAD)}):
        if day in there:
            continue
        within = f"{daily.column} >= {day * DAY} AND {daily.column} < {(day + 1) * DAY}"
        start, end = day * DAY, (day + 1) * DAY
        create = f"CREATE TABLE {name_of(daily, day)} PARTITION OF {daily.table} FOR VALUES FROM ({start}) TO ({end})"
        for statement in (
            f"CREATE TEMPORARY TABLE moved ON COMMIT DROP AS SELECT * FROM {rest} WHERE {within}",  # noqa: S608
            f"DELETE FROM {rest} WHERE {within}",  # noqa: S608
            create,
            f"INSERT INTO {daily.table} SELECT * FROM moved",  # noqa: S608
            "DROP TABLE moved",
        ):
            await connection.exec_driver_sql(statement)


async def _drop(connection: AsyncConnection, daily: Daily, now: float) -> None:
    oldest = (int(now) - daily.kept) // DAY
    for day in await days(connection, daily):
        if day < oldest:
            await connection.exec_driver_sql(f"DROP TABLE {name_of(daily, day)}")
    await connection.exec_driver_sql(f"DELETE FROM {rest_of(daily)} WHERE {daily.column} < {oldest * DAY}")  # noqa: S608


async def days(connection: AsyncConnection, daily: Daily) -> set[int]:
    """Return the days that have a partition."""
    query = sa.text("SELECT tablename FROM pg_tables WHERE schemaname = :schema AND tablename ~ :form")
    form = f"^{daily.table}_[0-9]{{8}}$"
    names = (await connection.execute(query, {"schema": SCHEMA, "form": form})).scalars()
    moments = (dt.datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=dt.UTC) for name in names)
    return {int(moment.timestamp()) // DAY for moment in moments}


async def _delete(store: Store, daily: Daily, now: float) -> None:
    oldest = (int(now) - daily.kept) // DAY * DAY
    old = f"SELECT rowid FROM {daily.table} WHERE {daily.column} < {oldest} LIMIT {SLICE}"  # noqa: S608
    while True:
        async with store.write() as connection:
            done = await connection.exec_driver_sql(f"DELETE FROM {daily.table} WHERE rowid IN ({old})")  # noqa: S608
        if done.rowcount < SLICE:
            return
