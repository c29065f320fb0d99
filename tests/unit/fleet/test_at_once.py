"""Two who act at once, on PostgreSQL, where nobody waits for the whole database: the later one sees what was done."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.errors import ConflictError
from casemate.fleet import approvals, commands, serve, wake
from casemate.fleet.accounts.roles import Role
from casemate.fleet.accounts.sessions import Person
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.rollout import releases, repository
from casemate.fleet.rollout.releases import Import
from casemate.fleet.store import rollout_tables, tables
from casemate.fleet.wake import Hub
from casemate.formats.envelope import Verb
from support import databases

DEVICE = str(uuid.UUID(int=7))
ADA = Person("ada", "Ada", Role.OWNER.value, "s", 0.0)
NOW = 1_800_000_000.0


@contextlib.asynccontextmanager
async def opened(tmp_path, kind="postgresql"):
    """Give a fleet with one device and one owner, and what signs its commands."""
    home, clock, url = FleetHome(tmp_path / "fleet"), SystemClock(), databases.new(kind, tmp_path)
    await serve.prepare(home, clock, serve.Options(database=url))
    fleet = Fleet.open(home, clock)
    device = {"id": DEVICE, "asset": "till", "state": "enrolled", "enrolled_by": "token", "key_digest": "ab" * 32}
    person = {"id": ADA.id, "name": ADA.name, "role": ADA.role, "state": "active"}
    async with fleet.store.write() as connection:
        await connection.execute(sa.insert(tables.device).values(**device, created=NOW, changed=NOW))
        await connection.execute(sa.insert(tables.user).values(**person, created=NOW))
    try:
        yield fleet, Commander(fleet.settings.fleet, home.signing_key("commands"))
    finally:
        await fleet.store.close()


async def one(fleet, table):
    async with fleet.store.read() as connection:
        return (await connection.execute(sa.select(table))).one()


def test_a_command_that_is_answered_as_its_time_ends_stays_answered(tmp_path):
    async def work():
        async with opened(tmp_path) as (fleet, commander):
            async with fleet.store.write() as connection:
                name = await commander.issue(connection, DEVICE, Verb.WIPE, actor="Ada", now=NOW)
                for _ in range(4):
                    await commander.issue(connection, DEVICE, Verb.PING, actor="Ada", now=NOW + 1)

            async def end(act):
                async with fleet.store.write() as connection:
                    return await act(connection, NOW + commands.LIFE)

            for act in (commands.expire, commander.renew):
                async with fleet.store.write() as connection:
                    await commands._finish(connection, name, DEVICE, "done", NOW)
                    ending = asyncio.create_task(end(act))
                    await asyncio.to_thread(databases.wait_for_lock, fleet.store.url)
                assert await ending == 0
                async with fleet.store.write() as connection:
                    command = tables.command.c
                    state = sa.select(command.state).where(command.id == name)
                    assert (await connection.execute(state)).scalar_one() == "done"
                    waits = sa.update(tables.command).where(command.id == name).values(state="waiting")
                    await connection.execute(waits)  # once more
            assert (await one(fleet, tables.device)).commands_waiting == 3, "five less two: each time it counted once"

    asyncio.run(work())


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "control: not cancelled"])
def test_a_wipe_that_is_cancelled_in_this_moment_is_not_carried_out(tmp_path, cancelled):
    async def work():
        async with opened(tmp_path) as (fleet, commander):
            async with fleet.store.write() as connection:
                wish = approvals.Wish("wipe", DEVICE, "till")
                name = await approvals.ask(connection, fleet.audit, wish, ADA, NOW)
            due = NOW + approvals.ALONE + 1

            async def carry_out():
                async with fleet.store.write() as connection:
                    return await approvals.carry_out(connection, fleet.audit, commander, due)

            async with fleet.store.write() as connection:
                if cancelled:
                    await approvals.cancel(connection, fleet.audit, name, ADA, due)
                    async with asyncio.timeout(60):
                        assert await carry_out() == 0
            done = await carry_out()
            return done, (await one(fleet, tables.device)).state, (await one(fleet, tables.approval)).state

    assert asyncio.run(work()) == ((0, "enrolled", "cancelled") if cancelled else (1, "wiping", "done"))


def test_a_root_that_is_replaced_while_the_old_repository_is_read_stays(tmp_path, monkeypatch):
    """Reading takes seconds; what it writes at its end must not put back what a person has just taken away."""
    (tmp_path / "metadata").mkdir()
    place = str(tmp_path)

    async def work():
        async with opened(tmp_path, "sqlite") as (fleet, _):
            loop, source = asyncio.get_running_loop(), rollout_tables.release_source

            async def replace(root):
                async with fleet.store.write() as connection:
                    await connection.execute(sa.update(source).values(root=root))

            def reading(*, root):
                """Have *root* brought in by somebody else while the repository is read."""

                def read(*_):
                    if root:
                        asyncio.run_coroutine_threadsafe(replace(root), loop).result(60)
                    return repository.Reading((), {"timestamp.json": "newer"}, NOW)

                monkeypatch.setattr(repository, "read", read)

            row = {"id": 1, "place": place, "root": b"old", "metadata": b"{}", "expires": NOW, "checked": 0.0}
            async with fleet.store.write() as connection:
                await connection.execute(sa.insert(source).values(row))
            reading(root=None)
            await releases.refresh(fleet)
            found = await one(fleet, source)
            assert (found.root, found.metadata) == (b"old", b'{"timestamp.json":"newer"}'), "the control"
            reading(root=b"new")
            await releases.refresh(fleet)
            found = await one(fleet, source)
            assert (found.root, found.fault) == (b"new", None)
            reading(root=b"newest")
            with pytest.raises(ConflictError):
                await releases.bring_in(fleet, Import(place, "Ada"))
            assert (await one(fleet, source)).root == b"newest"

    asyncio.run(work())


def test_a_stream_of_a_device_that_was_revoked_before_it_joined_ends(tmp_path):
    async def heard(admitted):
        hub = Hub()
        stream = hub.join("d")  # it was let in a moment ago; the revocation has woken nobody
        asyncio.get_running_loop().call_later(1.0, stream.end)
        return [part.split(b"event: ")[1].split()[0] async for part in wake.events(stream, admitted)], stream.closed

    async def yes():
        return True

    async def no():
        return False

    assert asyncio.run(heard(no)) == ([b"hello", b"bye"], False)
    assert asyncio.run(heard(yes)) == ([b"hello", b"bye"], True), "the control: it stays until it is ended"
