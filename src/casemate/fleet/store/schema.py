"""Bringing a database to the schema this version knows. One history of migrations for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from casemate.errors import OperationError
from casemate.fleet.store.database import Store

_SCRIPTS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x43_41_53_45  # PostgreSQL: two servers that start at once migrate one after the other


def newest() -> str:
    """Return the revision this version writes."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise OperationError("this installation has no migrations", hint="install it again")
    return head


async def revision(store: Store) -> str | None:
    """Return the revision of the database, None when it is empty."""
    async with store.read() as connection:
        return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


async def upgrade(store: Store, target: str = "head") -> None:
    """Migrate up to *target*, in one transaction.

    Raises:
        OperationError: a newer version wrote this database, or a migration failed; nothing was changed then.

    """
    await _run(store, lambda config: command.upgrade(config, target))


async def downgrade(store: Store, target: str) -> None:
    """Migrate back to *target* ("base": nothing left). For tests, and for going back after a failed update."""
    await _run(store, lambda config: command.downgrade(config, target))


async def _run(store: Store, act: Callable[[Config], None]) -> None:
    def work(connection: sa.Connection) -> None:
        if store.is_postgresql:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config = _config()
        config.attributes["connection"] = connection
        act(config)

    try:
        async with store.write() as connection:
            await connection.run_sync(work)
    except CommandError as error:
        raise OperationError(
            f"the database cannot be migrated: {error}", hint="it was written by a newer version: update this server"
        ) from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config
