"""Several servers on one database: changes heard exactly, duties done by one, one time, nobody else's database."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.errors import ConflictError, NotAuthorisedError, OperationError
from casemate.fleet import changes, enrolment, serve
from casemate.fleet import leader as leader_module
from casemate.fleet.changes import ChangeReader, Ears, Notices, note_change
from casemate.fleet.context import Fleet
from casemate.fleet.enrolment import Wanted
from casemate.fleet.home import FleetHome
from casemate.fleet.leader import Leader
from casemate.fleet.shared_clock import FleetClock
from casemate.fleet.store import Store, database, schema, tables
from support import databases


class Ahead(SystemClock):
    """A machine whose clock is off by *seconds*."""

    def __init__(self, seconds):
        self.seconds = seconds

    def wall(self):
        return super().wall() + self.seconds


@pytest.fixture(params=databases.KINDS)
def url(request, tmp_path):
    return databases.new(request.param, tmp_path)


@contextlib.asynccontextmanager
async def stores(url, count):
    made = [Store(url) for _ in range(count)]
    await schema.upgrade(made[0])
    try:
        yield made
    finally:
        for store in made:
            await store.close()


async def write(store, *devices):
    async with store.write() as connection:
        for device in devices:
            await note_change(connection, device, "state", 1.0)


def test_each_change_is_read_once_whatever_the_clocks_say(url):
    async def work():
        async with stores(url, 2) as (writer, other):
            reader = ChangeReader(other)
            await write(writer, "before")
            assert await reader.poll() == []
            await write(writer, "a", "b", "a")
            assert await reader.poll() == ["a", "b"]
            assert await reader.poll() == []
            await changes.prune(writer, 10_000.0)
            await write(writer, "c")
            assert await reader.poll() == ["c"]

    asyncio.run(work())


def test_a_transaction_that_commits_late_is_not_missed(tmp_path):
    """PostgreSQL: its number is older than that of one which was read already."""

    async def work():
        async with stores(databases.new("postgresql", tmp_path), 2) as (writer, other):
            reader = ChangeReader(other)
            await reader.poll()
            async with writer.write() as slow:
                await note_change(slow, "late", "state", 1.0)
                await write(writer, "quick")
                assert await reader.poll() == ["quick"]
            assert await reader.poll() == ["late"]
            assert await reader.poll() == []

    asyncio.run(work())


async def soon(condition, seconds=60.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


def once(heard):
    """Return what was heard without repetitions: what commits during a reading is read again by the next."""
    return list(dict.fromkeys(heard))


def begun(ears):
    """Whether it has read for the first time: what changes from here on is news."""
    return ears._reader._last is not None


@contextlib.asynccontextmanager
async def hearing(store, heard):
    stopping = asyncio.Event()
    ears = Ears(store, heard.extend, (Notices(store),))
    task = asyncio.create_task(ears.run(stopping))
    try:
        await soon(lambda: ears.connected and begun(ears))
        yield ears
    finally:
        stopping.set()
        await task


def test_a_change_on_one_server_is_told_on_another_at_once(tmp_path, monkeypatch):
    """Reading every so often is switched off: what is heard was told."""
    monkeypatch.setattr(changes, "QUIET_SECONDS", 3600.0)
    url = databases.new("postgresql", tmp_path)

    async def work():
        async with stores(url, 2) as (here, there):
            heard = []
            async with hearing(there, heard) as ears:
                await asyncio.sleep(0.1)  # what joining the line had it read again: from here on only a word does
                await write(here, "a")
                await soon(lambda: once(heard) == ["a"])
                databases_cut = asyncio.to_thread(databases.cut_connections, url)
                await databases_cut  # the line is lost, and what happens meanwhile is not told to anybody
                await soon(lambda: not ears.connected)
                await write(here, "b")
                await soon(lambda: once(heard) == ["a", "b"])
                await soon(lambda: ears.connected)
                await write(here, "c")
                await soon(lambda: once(heard) == ["a", "b", "c"])

    asyncio.run(work())


def test_control_without_a_line_nothing_is_told_before_the_next_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "POLL_SECONDS", 3600.0)

    async def work():
        async with stores(databases.new("postgresql", tmp_path), 2) as (here, there):
            heard, stopping = [], asyncio.Event()
            ears = Ears(there, heard.extend)
            task = asyncio.create_task(ears.run(stopping))
            await soon(lambda: begun(ears))
            await write(here, "a")
            await asyncio.sleep(0.5)
            assert heard == []
            ears.nudge()
            await soon(lambda: once(heard) == ["a"])
            stopping.set()
            await task

    asyncio.run(work())


def test_a_duty_has_one_leader_and_goes_over_when_that_one_dies(tmp_path):
    async def work():
        async with stores(databases.new("postgresql", tmp_path), 2) as made:
            first, second = map(Leader, made)
            assert await first.leads("alerts")
            assert not await second.leads("alerts")
            assert await second.leads("commands")  # another duty is another lock
            assert await first.leads("alerts")
            await asyncio.to_thread(databases.cut_connections, made[0].url)
            with pytest.raises(OperationError):
                await first.leads("alerts")  # it does not believe that it leads
            with pytest.raises(OperationError):
                await second.leads("alerts")
            async with asyncio.timeout(60):  # the lock is free when the session that held it has ended
                while not await second.leads("alerts"):  # noqa: ASYNC110 - it ends in another process
                    await asyncio.sleep(0.02)
            assert not await first.leads("alerts")
            await second.resign()
            assert await first.leads("alerts")
            await first.resign()

    asyncio.run(work())


def test_what_a_leader_decided_before_another_led_is_not_written(tmp_path):
    """It stops before it writes (a suspended machine), another takes over, it wakes up and goes on where it was."""

    async def work():
        async with stores(databases.new("postgresql", tmp_path), 2) as made:
            asleep, other = map(Leader, made)
            reader = ChangeReader(made[1])
            await reader.poll()
            assert await asleep.leads("alerts")
            with made[0].fenced(asleep.fence("alerts")):
                await write(made[0], "while it led")
                await asyncio.to_thread(databases.cut_connections, made[0].url)  # the database ends its session
                while not await led(other, "alerts"):
                    pass
                with made[1].fenced(other.fence("alerts")):
                    await write(made[1], "by the new one")
                with pytest.raises(ConflictError, match="another server leads"):
                    await write(made[0], "too late")
                with pytest.raises(OperationError):
                    await asleep.leads("alerts")
                assert not await asleep.leads("alerts")
            with made[0].fenced(asleep.fence("alerts")), pytest.raises(ConflictError):
                await write(made[0], "without ever leading")
            await write(made[0], "control: nobody asks")
            assert await reader.poll() == ["while it led", "by the new one", "control: nobody asks"]
            for each in (asleep, other):
                await each.resign()

    asyncio.run(work())


async def led(leader, duty):
    with contextlib.suppress(OperationError):
        return await leader.leads(duty)
    return False


@pytest.mark.parametrize("silent", [1, 3600], ids=["for too long", "control: not for long"])
def test_a_leader_that_says_nothing_is_followed_by_another(tmp_path, monkeypatch, silent):
    """As a process that was stopped: its kernel answers for it, so only what it says itself counts."""
    monkeypatch.setattr(leader_module, "SILENT_SECONDS", silent)

    async def work():
        async with stores(databases.new("postgresql", tmp_path), 2) as made:
            quiet, other = map(Leader, made)
            assert await quiet.leads("alerts")
            taken, asked = False, 0
            while not taken and asked < (300 if silent == 1 else 20):
                await asyncio.sleep(0.1)
                taken, asked = await other.leads("alerts"), asked + 1
            assert taken == (silent == 1)
            if taken:
                with pytest.raises(OperationError):
                    await quiet.keep()  # its session is gone
            await quiet.keep()
            for each in (quiet, other):
                await each.resign()

    asyncio.run(work())


def test_a_transaction_that_was_left_open_frees_what_it_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "IDLE_SECONDS", 1)

    async def work():
        async with stores(databases.new("postgresql", tmp_path), 1) as (other,):
            monkeypatch.setattr(database, "IDLE_SECONDS", 1)
            stopped = Store(other.url)
            locked = sa.text("LOCK TABLE change IN ACCESS EXCLUSIVE MODE")

            async def left_open():
                async with stopped.write() as connection:
                    await connection.execute(locked)
                    await write(other, "a")  # waits for the lock, until the database ends who holds it
                    await note_change(connection, "b", "state", 1.0)

            async with asyncio.timeout(60):
                with pytest.raises(OperationError):
                    await left_open()
                async with stopped.snapshot() as held:  # control: what locks nothing may take its time
                    await asyncio.sleep(1.5)
                    assert (await held.execute(sa.select(tables.change.c.device_id))).scalars().all() == ["a"]
            await stopped.close()

    asyncio.run(work())


def test_a_server_that_stopped_in_the_middle_of_a_statement_blocks_nobody_for_long(tmp_path):
    """It prepared a statement and did not send the rest: no limit of the database's own ends that."""

    async def work():
        async with stores(databases.new("postgresql", tmp_path), 1) as (other,):
            stopped = await asyncpg.connect(databases.dsn(other.url), server_settings={"application_name": "casemate"})
            await stopped.execute("BEGIN; LOCK TABLE change IN SHARE MODE")
            await stopped.prepare("SELECT 2")
            waiting = asyncio.create_task(write(other, "a"))
            async with asyncio.timeout(60):
                while not await asyncio.to_thread(databases.somebody_waits, other.url):
                    pass
                await asyncio.sleep(1.5)
                assert await other.unblock() == 0  # control: it may take as long as a transaction may
                assert not waiting.done()
                assert await other.unblock(1.0) == 1
                await waiting
            stopped.terminate()

    asyncio.run(work())


def test_on_sqlite_whoever_asks_leads(tmp_path):
    async def work():
        async with stores(databases.new("sqlite", tmp_path), 2) as made:
            assert [await Leader(store).leads("alerts") for store in made] == [True, True]

    asyncio.run(work())


@contextlib.asynccontextmanager
async def replicas(directory, url, *clocks):
    home, opened = FleetHome(directory), []
    await serve.prepare(home, SystemClock(), serve.Options(database=url))
    for clock in clocks:
        fleet = Fleet.open(home, clock)
        await fleet.clock.settle()
        opened.append(fleet)
    try:
        yield opened
    finally:
        for fleet in opened:
            await fleet.store.close()


@pytest.mark.parametrize("settled", [True, False], ids=["the database's", "control: each its own"])
def test_what_has_ended_has_ended_for_every_server(tmp_path, settled, monkeypatch):
    """One machine's clock is two hours slow: a token that ended would be good for two hours more there."""
    if not settled:
        monkeypatch.setattr(FleetClock, "settle", lambda _: asyncio.sleep(0))

    async def work():
        url = databases.new("postgresql", tmp_path)
        async with replicas(tmp_path / "fleet", url, SystemClock(), Ahead(-7200.0)) as (right, slow):
            made = await enrolment.create_token(right, Wanted("till", seconds=-60.0), "test")
            async with slow.store.write() as connection:
                await enrolment.open_token(connection, made.token, slow.clock.wall())

    if settled:
        with pytest.raises(NotAuthorisedError):
            asyncio.run(work())
    else:
        asyncio.run(work())


def test_a_clock_that_is_right_is_left_alone(tmp_path):
    async def work():
        async with replicas(tmp_path / "fleet", databases.new("postgresql", tmp_path), Ahead(0.0), Ahead(90.0)) as two:
            return [await fleet.clock.settle() for fleet in two]

    right, wrong = asyncio.run(work())
    assert abs(right) < 1.0
    assert -91.0 < wrong < -89.0


def test_a_database_of_another_fleet_is_refused(tmp_path, url):
    async def fill(directory):
        home = FleetHome(directory)
        await serve.prepare(home, SystemClock(), serve.Options(database=url))
        fleet = Fleet.open(home, SystemClock())
        await enrolment.create_token(fleet, Wanted("till"), "test")
        await fleet.store.close()

    asyncio.run(fill(tmp_path / "first"))
    asyncio.run(fill(tmp_path / "first"))  # its own is not
    with pytest.raises(OperationError, match="another fleet"):
        asyncio.run(fill(tmp_path / "second"))
    assert not FleetHome(tmp_path / "second").exists


def test_the_lock_of_a_duty_fits_postgresql(tmp_path):
    async def work():
        async with stores(databases.new("postgresql", tmp_path), 1) as (store,):
            leader = Leader(store)
            for number in range(8):
                assert await leader.leads(f"duty-{number}")
            locks = sa.text("SELECT count(DISTINCT objid) FROM pg_locks WHERE locktype = 'advisory'")
            async with store.read() as connection:
                assert (await connection.execute(locks)).scalar() == 8
            await leader.resign()

    asyncio.run(work())


def test_the_table_of_changes_knows_transactions(tmp_path):
    async def work():
        async with stores(databases.new("postgresql", tmp_path), 1) as (store,):
            await write(store, "a", "b")
            async with store.read() as connection:
                rows = (await connection.execute(sa.select(tables.change.c.xact))).scalars().all()
            assert rows[0] == rows[1] > 0

    asyncio.run(work())
