"""Where batches of check-ins go: into the database, in few statements, and those that came over a bus once each.

Rows are sorted by whoever gathered them, so two servers that write at once cannot deadlock. What arrives late does not
take back what is newer: a device that spoke to two servers has the later word.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import OperationError
from casemate.fleet.store import Store, ingest_tables
from casemate.formats.fleet_api import LARGEST
from casemate.formats.ingest import Batch, HealthRow, SeenRow

BATCHES_KEPT: Final = 7 * 86400.0
"""Seconds: a bus delivers nothing again that is older."""
_CHUNK: Final = 5_000


class Sink(Protocol):
    """Takes batches; when it returns they are safe."""

    async def take(self, seen: list[SeenRow], health: list[HealthRow]) -> None:
        """Keep what devices said.

        Raises:
            OperationError: it could not; nothing of it was kept.

        """
        ...


class DatabaseSink:
    """The database itself."""

    def __init__(self, store: Store) -> None:
        """Write to *store*."""
        self._store = store

    async def take(self, seen: list[SeenRow], health: list[HealthRow]) -> None:
        """See `Sink.take`."""
        async with self._store.write() as connection:
            await self._begin(connection)
            await self._write(connection, seen, health)

    async def take_once(self, batch: Batch, now: float) -> bool:
        """Write *batch* unless it was written before; returns whether it was now.

        Raises:
            OperationError: the database did not take it.

        """
        async with self._store.write() as connection:
            await self._begin(connection)
            if new := await _first(connection, batch, now):
                await self._write(connection, batch.seen, batch.health)
        return new

    async def _begin(self, connection: AsyncConnection) -> None:
        if self._store.is_postgresql:  # also begins the transaction that the raw statements below join
            await connection.exec_driver_sql("SET LOCAL synchronous_commit = off")

    async def _write(self, connection: AsyncConnection, seen: list[SeenRow], health: list[HealthRow]) -> None:
        for target, rows in ((_SEEN, seen), (_HEALTH, health)):
            for start in range(0, len(rows), _CHUNK):
                chunk: list[Any] = list(rows[start : start + _CHUNK])
                if self._store.is_postgresql:
                    raw = await connection.get_raw_connection()
                    columns = list(zip(*chunk, strict=True))
                    try:
                        await raw.driver_connection.execute(target.postgresql, *columns)  # type: ignore[union-attr]
                    except Exception as error:  # the driver's own, which SQLAlchemy did not see and so not name
                        raise OperationError(
                            "the database did not take a batch of check-ins", hint="check that it runs"
                        ) from error
                else:
                    await connection.exec_driver_sql(target.sqlite, chunk)


async def prune(connection: AsyncConnection, now: float) -> None:
    """Forget the names of batches that cannot come again."""
    table = ingest_tables.ingest_batch
    await connection.execute(sa.delete(table).where(table.c.taken < now - BATCHES_KEPT))


async def _first(connection: AsyncConnection, batch: Batch, now: float) -> bool:
    dialect: Any = {"postgresql": postgresql, "sqlite": sqlite}[connection.dialect.name]
    insert = dialect.insert(ingest_tables.ingest_batch).values(name=batch.name, taken=now).on_conflict_do_nothing()
    return bool((await connection.execute(insert)).rowcount)


@dataclasses.dataclass(frozen=True, slots=True)
class _Target:
    """An upsert of many rows, in each database's quickest form."""

    sqlite: str
    postgresql: str


def _target(table: str, keys: dict[str, str], columns: dict[str, tuple[str, str]], *, newer: str = "") -> _Target:
    """Build the upsert; *columns* maps a name to its PostgreSQL type and how an existing value takes a new one."""
    names = [*keys, *columns]
    functions = {"sqlite": ("max", "min"), "postgresql": ("greatest", "least")}
    texts = {}
    for dialect, (greatest, least) in functions.items():
        changes = ", ".join(
            f"{name} = " + how.format(old=f"{table}.{name}", new=f"excluded.{name}", greatest=greatest, least=least)
            for name, (_, how) in columns.items()
        )
        tail = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changes}"
        if newer:
            tail += f" WHERE excluded.{newer} >= {table}.{newer}"
        types = [*keys.values(), *(kind for kind, _ in columns.values())]
        if dialect == "sqlite":
            source = f"VALUES ({', '.join('?' * len(names))})"
        else:
            arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, 1))
            source = f"SELECT * FROM unnest({arrays})"  # noqa: S608 - names and types are ours, values are parameters
        texts[dialect] = f"INSERT INTO {table} ({', '.join(names)}) {source} {tail}"
    return _Target(**texts)


_SET: Final = "{new}"
_MAX: Final = "{greatest}({old}, {new})"
_SUM: Final = f"{{least}}({{old}} + {{new}}, {LARGEST})"
"""A device that counts as high as it can is believed so far and no further: a sum beyond a bigint fails every row."""
_SEEN: Final = _target(
    "device_seen",
    {"device_id": "text"},
    {
        "last_seen": ("float8", _SET),
        "state": ("text", _SET),
        "agent": ("text", _SET),
        "generation": ("text", _SET),
        "clock_skew": ("float8", _SET),
        "sequence": ("bigint", _SET),
    },
    newer="last_seen",
)
_HEALTH: Final = _target(
    "health_rollup",
    {"device_id": "text", "bucket": "bigint"},
    {
        "samples": ("int", _SUM),
        "temperature_max": ("float8", _MAX),
        "memory_max": ("bigint", _MAX),
        "load_max": ("float8", _MAX),
        "requests": ("bigint", _SUM),
        "refusals": ("bigint", _SUM),
        "integrity_failures": ("bigint", _SUM),
    },
)
