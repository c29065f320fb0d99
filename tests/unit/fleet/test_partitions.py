"""Days: made ahead, filled by what comes, forgotten whole; and the same end on SQLite by deleting."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.fleet import serve
from casemate.fleet.home import FleetHome
from casemate.fleet.ingest import DatabaseSink
from casemate.fleet.store import Store, partitions, schema, tables
from casemate.fleet.store.partitions import DAILY, DAY
from support import databases

(DAILY_HEALTH,) = DAILY
TODAY = 20_000 * DAY


def row(bucket, device="d"):
    return (device, bucket, 1, 1.0, 1, 1.0, 1, 0, 0)


async def opened(url):
    store = Store(url)
    await schema.upgrade(store)
    return store


async def buckets(store):
    async with store.read() as connection:
        return sorted((await connection.execute(sa.select(tables.health_rollup.c.bucket))).scalars())


async def made(store):
    async with store.read() as connection:
        return sorted(await partitions.days(connection, DAILY_HEALTH))


async def rest(store):
    async with store.read() as connection:
        return (await connection.exec_driver_sql(f"SELECT count(*) FROM {partitions.rest_of(DAILY_HEALTH)}")).scalar()


@pytest.mark.parametrize("kind", databases.KINDS)
def test_what_is_old_is_forgotten_and_nothing_else(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(partitions, "SLICE", 3)
    kept = DAILY_HEALTH.kept
    wanted = [TODAY - kept, TODAY - DAY, TODAY, TODAY + 300]
    old = [TODAY - kept - DAY + number for number in range(8)] + [TODAY - kept - 1]

    async def work():
        store = await opened(databases.new(kind, tmp_path))
        await DatabaseSink(store).take([], [row(bucket) for bucket in sorted(old + wanted)])
        await partitions.keep(store, TODAY + 10.0)
        first = await buckets(store)
        await partitions.keep(store, TODAY + 10.0)  # a second time changes nothing
        assert await buckets(store) == first
        await store.close()
        return first

    assert asyncio.run(work()) == wanted


def test_days_come_and_go(tmp_path):
    async def work():
        store, today = await opened(databases.new("postgresql", tmp_path)), TODAY // DAY
        await partitions.keep(store, float(TODAY))
        assert await made(store) == [today, today + 1, today + 2]
        sink = DatabaseSink(store)
        await sink.take([], [row(TODAY), row(TODAY + DAY)])
        await sink.take([], [row(TODAY)])  # a row that is there takes the new one, in a partition as well
        assert await rest(store) == 0
        await sink.take([], [row(TODAY + 9 * DAY), row(TODAY - 3 * DAY)])  # a clock that jumped, a row restored
        assert await rest(store) == 2
        await partitions.keep(store, float(TODAY))
        assert await rest(store) == 1
        assert today - 3 in await made(store)
        await partitions.keep(store, float(TODAY + 8 * DAY))  # that day comes, and its row goes where it belongs
        assert await rest(store) == 0
        assert await buckets(store) == [TODAY - 3 * DAY, TODAY, TODAY + DAY, TODAY + 9 * DAY]
        await partitions.keep(store, float(TODAY + DAILY_HEALTH.kept + DAY))
        assert await buckets(store) == [TODAY + DAY, TODAY + 9 * DAY]
        assert min(await made(store)) == today + 1
        await store.close()

    asyncio.run(work())


def test_rows_that_were_there_before_days_stay(tmp_path):
    async def work():
        store = Store(databases.new("postgresql", tmp_path))
        await schema.upgrade(store, "0009")
        await DatabaseSink(store).take([], [row(TODAY), row(TODAY - DAY)])
        await schema.upgrade(store)
        await partitions.keep(store, float(TODAY))
        assert await rest(store) == 0
        found = await buckets(store)
        await schema.downgrade(store, "0009")
        assert await buckets(store) == found
        await store.close()
        return found

    assert asyncio.run(work()) == [TODAY - DAY, TODAY]


def test_servers_that_start_at_once_make_each_day_once_and_by_the_databases_clock(tmp_path):
    """One machine's clock is a year ahead: it must not drop what is young."""

    class Ahead(SystemClock):
        def wall(self):
            return super().wall() + 400 * DAY

    async def work():
        url, home = databases.new("postgresql", tmp_path), FleetHome(tmp_path / "fleet")
        await serve.prepare(home, SystemClock(), serve.Options(database=url))
        store, now = Store(url), SystemClock().wall()
        await DatabaseSink(store).take([], [row(int(now))])
        async with store.write() as connection:
            for day in await partitions.days(connection, DAILY_HEALTH) - {int(now) // DAY}:
                await connection.exec_driver_sql(f"DROP TABLE {partitions.name_of(DAILY_HEALTH, day)}")
        clocks = [SystemClock(), Ahead(), SystemClock()]
        await asyncio.gather(*(serve.prepare(home, clock, serve.Options()) for clock in clocks))
        assert await buckets(store) == [int(now)]
        assert await rest(store) == 0
        await store.close()

    asyncio.run(work())
