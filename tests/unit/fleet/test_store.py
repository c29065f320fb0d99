"""The schema: one history, the same on both databases, there and back."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from casemate.errors import ConfigError, OperationError
from casemate.fleet.store import Store, schema, tables
from support import databases


@pytest.fixture(params=databases.KINDS)
def store(request, tmp_path):
    return Store(databases.new(request.param, tmp_path))


def run(store, work):
    async def whole():
        try:
            return await work()
        finally:
            await store.close()

    return asyncio.run(whole())


def differences(connection):
    return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), tables.metadata)


def test_the_migrations_make_exactly_the_tables_of_the_code(store):
    async def work():
        await schema.upgrade(store)
        async with store.read() as connection:
            return await connection.run_sync(differences)

    assert run(store, work) == []


def test_every_migration_can_be_undone_and_done_again(store):
    async def work():
        await schema.upgrade(store)
        await schema.downgrade(store, "base")
        empty = await schema.revision(store)
        await schema.upgrade(store)
        await schema.upgrade(store)
        return empty, await schema.revision(store)

    assert run(store, work) == (None, schema.newest())


def test_a_database_of_a_newer_version_is_left_alone(store):
    async def work():
        await schema.upgrade(store)
        async with store.write() as connection:
            await connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'from-the-future'")
        await schema.upgrade(store)

    with pytest.raises(OperationError, match="cannot be migrated"):
        run(store, work)


def test_a_failed_transaction_leaves_nothing(store):
    async def interrupted():
        async with store.write() as connection:
            await connection.execute(tables.change.insert().values(device_id="d", kind="state", created=1.0))
            _ = 1 / 0

    async def work():
        await schema.upgrade(store)
        with pytest.raises(ZeroDivisionError):
            await interrupted()
        async with store.read() as connection:
            return (await connection.execute(tables.change.select())).all()

    assert run(store, work) == []


def test_two_writers_wait_for_each_other(tmp_path):
    """SQLite: a transaction that read first and writes later must not fail because another was faster."""
    store = Store(databases.new("sqlite", tmp_path))

    async def bump():
        async with store.write() as connection:
            count = len((await connection.execute(tables.change.select())).all())
            await asyncio.sleep(0)
            await connection.execute(tables.change.insert().values(device_id=str(count), kind="state", created=1.0))

    async def work():
        await schema.upgrade(store)
        await asyncio.gather(*(bump() for _ in range(8)))
        async with store.read() as connection:
            return [row.device_id for row in (await connection.execute(tables.change.select())).all()]

    assert run(store, work) == [str(number) for number in range(8)]


@pytest.mark.parametrize("url", ["mysql://x/y", "fleet.db", "", "://"])
def test_another_database_is_refused(url):
    with pytest.raises(ConfigError, match="sqlite or postgresql"):
        Store(url)


def test_sqlite_is_durable_at_the_end_of_a_transaction(tmp_path):
    """Without this a power cut could take back a revocation."""
    store = Store(databases.new("sqlite", tmp_path))

    async def work():
        async with store.read() as connection:
            return (await connection.exec_driver_sql("PRAGMA synchronous")).scalar()

    assert run(store, work) == 2  # FULL
    assert sqlite3.connect(tmp_path / "fleet.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)
