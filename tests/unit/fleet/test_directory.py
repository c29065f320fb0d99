"""Who is calling: what is held about a device is never older than the last change that was heard of."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.fleet.identity import Directory
from casemate.fleet.store import Store, schema, tables
from support import databases

SERIAL = "ab"


class Slow(Directory):
    """Its database has answered, and the answer is still on its way."""

    def __init__(self, store):
        super().__init__(store, SystemClock())
        self.read, self.arrives = asyncio.Event(), asyncio.Event()
        self.queries = 0

    async def _query(self, serials):
        found = await super()._query(serials)
        self.queries += 1
        self.read.set()
        await self.arrives.wait()
        return found


@contextlib.asynccontextmanager
async def slow(tmp_path, kind):
    store = Store(databases.new(kind, tmp_path))
    await schema.upgrade(store)
    device = {"id": "d", "asset": "till", "state": "enrolled", "enrolled_by": "token", "key_digest": "ab" * 32}
    certificate = {"serial": SERIAL, "device_id": "d", "state": "active", "not_before": 0.0, "not_after": 1e10}
    async with store.write() as connection:
        await connection.execute(sa.insert(tables.device).values(**device, created=0.0, changed=0.0))
        await connection.execute(sa.insert(tables.device_cert).values(**certificate, certificate=b""))
    try:
        yield Slow(store), store
    finally:
        await store.close()


async def quarantine(store):
    async with store.write() as connection:
        await connection.execute(sa.update(tables.device).values(state="quarantined", commands_waiting=1))


@pytest.mark.parametrize("kind", databases.KINDS)
@pytest.mark.parametrize("heard", [True, False], ids=["heard of", "control: not heard of"])
def test_what_changes_while_it_is_looked_up_is_looked_up_again(tmp_path, kind, heard):
    """A device that is woken calls at once: it must not meet the record from before its command."""

    async def work():
        async with slow(tmp_path, kind) as (directory, store):
            asked = asyncio.create_task(directory.find(SERIAL))
            await directory.read.wait()
            await quarantine(store)
            if heard:
                directory.forget("d")
            directory.arrives.set()
            assert (await asked).state == "enrolled"  # asked before the change
            return (await directory.find(SERIAL)).commands_waiting, directory.queries

    assert asyncio.run(work()) == ((1, 2) if heard else (0, 1))


def test_a_certificate_that_comes_while_it_is_looked_up_is_looked_up_again(tmp_path):
    async def work():
        async with slow(tmp_path, "sqlite") as (directory, store):
            async with store.write() as connection:
                await connection.execute(sa.update(tables.device_cert).values(serial="cd"))
            asked = asyncio.create_task(directory.find(SERIAL))
            await directory.read.wait()
            async with store.write() as connection:
                await connection.execute(sa.update(tables.device_cert).values(serial=SERIAL))
            directory.forget("d")
            directory.arrives.set()
            assert await asked is None
            assert (await directory.find(SERIAL)).id == "d"

    asyncio.run(work())


def test_what_nobody_changed_is_looked_up_once(tmp_path):
    async def work():
        async with slow(tmp_path, "sqlite") as (directory, _store):
            directory.arrives.set()
            for _ in range(3):
                assert (await directory.find(SERIAL)).asset == "till"
            directory.forget("somebody else")
            assert (await directory.find(SERIAL)).asset == "till"
            assert directory.queries == 1

    asyncio.run(work())
