"""NATS between servers and database, the real one: what it acknowledged is written once, and nothing needs it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid

import nats
import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.errors import ConfigError, OperationError
from casemate.fleet import bus as buses
from casemate.fleet import changes, ingest, serve
from casemate.fleet.changes import Ears, note_change
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.store import tables
from casemate.formats.fleet_api import CheckIn, Health
from casemate.formats.ingest import Batch, seal
from support import databases
from support.fleet import Device, running, until
from support.nats import Nats

DEVICES = 300


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    server = Nats(tmp_path_factory.mktemp("broker")).start()
    yield server
    server.kill()


@dataclasses.dataclass
class Site:
    fleets: list[Fleet]
    stopping: asyncio.Event
    running: list[asyncio.Task]

    async def connected(self):
        await soon(lambda: all(fleet.bus.connected and fleet.bus._ready.is_set() for fleet in self.fleets))


async def soon(condition, seconds=60.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def site(directory, broker, *, servers=2):
    """Give servers of one fleet, in this process, on one PostgreSQL and one NATS."""
    home = FleetHome(directory / "fleet")
    options = serve.Options(database=databases.new("postgresql", directory), bus=broker.url)
    await serve.prepare(home, SystemClock(), options)
    fleets = [Fleet.open(home, SystemClock()) for _ in range(servers)]
    stopping = asyncio.Event()
    found = Site(fleets, stopping, [asyncio.create_task(fleet.bus.run(stopping)) for fleet in fleets])
    try:
        yield found
    finally:
        stopping.set()
        await asyncio.gather(*found.running)
        for fleet in fleets:
            await fleet.bus.close()
            await fleet.store.close()


def say(fleet, number, *, requests=1):
    message = CheckIn(state="ok", agent="t", clock=0.0, health=Health(requests=requests))
    fleet.seen.put(f"device-{number}", message, fleet.clock.wall())


async def counted(fleet):
    """Return how many devices were seen, and how often."""
    rollup = tables.health_rollup.c
    async with fleet.store.read() as connection:
        seen = (await connection.execute(sa.select(sa.func.count()).select_from(tables.device_seen))).scalar()
        samples = (await connection.execute(sa.select(sa.func.coalesce(sa.func.sum(rollup.samples), 0)))).scalar()
    return seen, int(samples)


async def until_counted(fleet, wanted):
    async with asyncio.timeout(60):
        while await counted(fleet) != wanted:  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.1)


def outcomes(fleet):
    return {
        sample.labels["outcome"]: sample.value
        for family in fleet.metrics.batches.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def test_check_ins_go_through_the_stream_and_count_once(tmp_path, broker, monkeypatch):
    monkeypatch.setattr(buses, "ROWS", 100)

    async def work():
        async with site(tmp_path, broker) as found:
            await found.connected()
            for number in range(DEVICES):
                say(found.fleets[number % 2], number)
            for fleet in found.fleets:
                await fleet.seen.flush()
            await until_counted(found.fleets[0], (DEVICES, DEVICES))
            assert [outcomes(fleet)["stream"] for fleet in found.fleets] == [2, 2]
            assert sum(outcomes(fleet).get("written", 0) for fleet in found.fleets) == 4

    asyncio.run(work())


def test_without_nats_batches_go_directly_and_with_it_again_through_the_stream(tmp_path):
    broker = Nats(tmp_path)  # not started

    async def work():
        async with site(tmp_path, broker, servers=1) as found:
            (fleet,) = found.fleets
            say(fleet, 1)
            await fleet.seen.flush()
            assert await counted(fleet) == (1, 1)
            broker.start()
            await found.connected()
            say(fleet, 2)
            await fleet.seen.flush()
            await until_counted(fleet, (2, 2))
            broker.kill()
            say(fleet, 3)
            await fleet.seen.flush()  # as soon as the publishing gives up
            assert await counted(fleet) == (3, 3)
            broker.start()
            await found.connected()
            say(fleet, 4)
            await fleet.seen.flush()
            await until_counted(fleet, (4, 4))
            assert outcomes(fleet)["stream"] == 2
            assert outcomes(fleet)["direct"] == 2

    try:
        asyncio.run(work())
    finally:
        broker.kill()


def test_what_the_stream_acknowledged_outlives_the_database_the_server_and_nats(tmp_path, monkeypatch):
    """The database is away, check-ins are taken; then everything is killed; then the database is back."""
    broker = Nats(tmp_path).start()
    taken = ingest.DatabaseSink.take_once

    async def away(*_):
        await asyncio.sleep(0)
        raise OperationError("the database did not answer")

    async def while_it_is_away(found):
        (fleet,) = found.fleets
        await found.connected()
        for number in range(DEVICES):
            say(fleet, number)
        await fleet.seen.flush()
        assert await counted(fleet) == (0, 0)
        return fleet.home

    async def work():
        monkeypatch.setattr(ingest.DatabaseSink, "take_once", away)
        async with site(tmp_path, broker, servers=1) as found:
            home = await while_it_is_away(found)
        broker.kill()
        broker.start()
        monkeypatch.setattr(ingest.DatabaseSink, "take_once", taken)
        fleet, stopping = Fleet.open(home, SystemClock()), asyncio.Event()
        task = asyncio.create_task(fleet.bus.run(stopping))
        await until_counted(fleet, (DEVICES, DEVICES))
        stopping.set()
        await task
        await fleet.bus.close()
        await fleet.store.close()

    try:
        asyncio.run(work())
    finally:
        broker.kill()


def test_a_batch_that_came_both_ways_or_from_a_stranger_is_not_counted(tmp_path, broker):
    async def work():
        async with site(tmp_path, broker, servers=1) as found:
            (fleet,) = found.fleets
            await found.connected()
            bus = fleet.bus
            row = ("device-1", 5.0, "ok", "t", "", 0.0, 0)
            health = ("device-1", 0, 1, 1.0, 1, 1.0, 1, 0, 0)
            batch = Batch(uuid.uuid4().hex, [row], [health])
            assert await ingest.DatabaseSink(fleet.store).take_once(batch, 1.0)  # its acknowledgement got lost
            stranger = await nats.connect(broker.url)
            for data in (
                seal(batch, bus._key),
                seal(Batch(uuid.uuid4().hex, [("forged", *row[1:])], []), b"another key"),
                b"x" * 200,
                b"",
            ):
                await stranger.jetstream().publish(bus._batches, data)
            await soon(lambda: outcomes(fleet).get("again") == 1 and outcomes(fleet).get("bus-seal") == 2)
            await soon(lambda: outcomes(fleet).get("bus-size") == 1)
            assert await counted(fleet) == (1, 1)
            await stranger.close()

    asyncio.run(work())


def test_a_batch_that_is_too_large_for_the_bus_goes_directly(tmp_path, broker):
    """NATS takes a little more than whoever fetches: what is between would be acknowledged and thrown away."""

    async def work():
        async with site(tmp_path, broker, servers=1) as found:
            (fleet,) = found.fleets
            await found.connected()
            wordy = CheckIn(state="ok", agent="\U0001f600" * 128, clock=0.0)
            for number in range(1700):
                fleet.seen.put(f"device-{number}", wordy, fleet.clock.wall())
            await fleet.seen.flush()
            assert outcomes(fleet) == {"direct": 1}
            assert await counted(fleet) == (1700, 0)

    asyncio.run(work())


def test_a_batch_that_the_database_refuses_ends_neither_the_server_nor_the_bus(tmp_path, broker, caplog):
    async def work():
        async with site(tmp_path, broker, servers=1) as found:
            (fleet,) = found.fleets
            await found.connected()
            beyond = ("device-1", 0, 1 << 40, 1.0, 1, 1.0, 1, 0, 0)  # no column holds so many samples
            stranger = await nats.connect(broker.url)
            await stranger.jetstream().publish(
                fleet.bus._batches, seal(Batch(uuid.uuid4().hex, [], [beyond]), fleet.bus._key)
            )
            await soon(lambda: "did not take a batch" in caplog.text)
            await stranger.jetstream().purge_stream(fleet.bus._stream)
            await stranger.close()
            await found.connected()
            say(fleet, 1)
            await fleet.seen.flush()
            await until_counted(fleet, (1, 1))
            assert not any(task.done() for task in found.running)

    asyncio.run(work())


def test_a_nudge_over_nats_reaches_the_other_server(tmp_path, broker, monkeypatch):
    """Reading every so often is switched off, and PostgreSQL's own word is not listened to."""
    monkeypatch.setattr(changes, "QUIET_SECONDS", 3600.0)
    monkeypatch.setattr(changes, "POLL_SECONDS", 3600.0)

    async def work():
        async with site(tmp_path, broker) as found:
            here, there = found.fleets
            here.store.when_changed(here.bus.nudge)
            heard, stopping = [], asyncio.Event()
            ears = Ears(there.store, heard.extend, (there.bus,))
            task = asyncio.create_task(ears.run(stopping))
            await soon(lambda: ears.connected and ears._reader._last is not None)
            await asyncio.sleep(0.2)  # and what joining the line had it read again: from here on only a nudge does
            async with here.store.write() as connection:
                await note_change(connection, "a", "state", 1.0)
            await soon(lambda: "a" in heard)
            stopping.set()
            await task

    asyncio.run(work())


def test_a_nats_without_room_is_told_of_and_batches_go_directly(tmp_path, caplog):
    broker = Nats(tmp_path, room="10MB").start()

    async def work():
        async with site(tmp_path, broker, servers=1) as found:
            (fleet,) = found.fleets
            await soon(lambda: "insufficient storage" in caplog.text)
            say(fleet, 1)
            await fleet.seen.flush()
            assert await counted(fleet) == (1, 1)
            assert outcomes(fleet) == {"direct": 1}

    try:
        asyncio.run(work())
    finally:
        broker.kill()
    assert "it needs 1 GiB (max_file_store)" in caplog.text


def test_a_server_starts_serves_and_stops_whether_nats_is_there_or_not(tmp_path):
    broker = Nats(tmp_path)
    with running(tmp_path / "fleet", f"--bus={broker.url}") as server:
        device = Device(server, tmp_path, "till").enrol()
        assert device.checkin().status == 200
        until(lambda: server.device("till")["last_seen"])
        broker.start()
        try:
            until(lambda: device.checkin().status == 200
                  and server.metric('casemate_fleet_batches_total{outcome="written"}') > 0)  # fmt: skip
            assert device.checkin(agent="last words").status == 200
            assert server.stop() == 0  # what waited is written
            server.start()
            until(lambda: server.device("till")["agent"] == "last words")
        finally:
            broker.kill()


@pytest.mark.parametrize("url", ["http://x", "nats://", "x", ""])
def test_another_address_is_refused(url):
    with pytest.raises(ConfigError):
        buses.check_url(url)
