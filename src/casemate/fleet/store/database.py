"""The database behind everything: SQLite (one writer) or PostgreSQL, with the same transactions.

`write()` is for what must not be lost or raced: on SQLite it takes the write lock at once (a read that becomes a write
later would fail when another was faster), on PostgreSQL it is an ordinary transaction with row locks. `read()` is a
snapshot. Nothing here knows what the tables mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from casemate.errors import CasemateError, ConfigError, OperationError

_BUSY_MS: Final = 10_000
_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_WRITES: Final = "casemate_writes"
_CHANGED: Final = "casemate_changed"
_CONNECT_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 30
"""How long a transaction on PostgreSQL may wait for the server that began it. A process that was stopped in the middle
of one would keep what it locked from all the others until somebody noticed; the database ends it instead. Choosing the
devices of a batch among a million takes seconds inside of one: it must not be taken for asleep."""
_ALIVE: Final = ("tcp_keepalives_idle = 10", "tcp_keepalives_interval = 5", "tcp_keepalives_count = 3")
"""What ends a session whose machine is gone within half a minute: its locks are free then."""
_NAME: Final = "casemate"
_UNBLOCK: Final = sa.text("""
    SELECT count(pg_terminate_backend(held.pid)) FROM pg_stat_activity held
    WHERE held.datname = current_database() AND held.application_name = :name AND held.wait_event = 'ClientRead'
      AND held.xact_start IS NOT NULL AND held.state_change < clock_timestamp() - make_interval(secs => :seconds)
      AND held.pid IN (SELECT unnest(pg_blocking_pids(waits.pid)) FROM pg_stat_activity waits
                       WHERE waits.datname = current_database() AND waits.wait_event_type = 'Lock')
""")
_NO_LIMIT: Final = sa.text("SET LOCAL idle_in_transaction_session_timeout = 0")

Fence = Callable[[AsyncConnection], Awaitable[None]]
"""Raises when the transaction it is given must not be committed."""
_fence: ContextVar[Fence | None] = ContextVar("fence", default=None)


class Store:
    """Connections to one database."""

    def __init__(self, url: str, *, pool: int = 10) -> None:
        """Prepare *url*; nothing connects before the first transaction.

        Raises:
            ConfigError: not a URL of a database we support.

        """
        self.url = driver_url(url)
        self.is_postgresql = self.url.startswith("postgresql")
        options: dict[str, Any] = {"pool_size": pool, "max_overflow": 0, "pool_timeout": 15}
        if self.is_postgresql:
            options["pool_pre_ping"] = True  # a database that was restarted costs one round trip, not one request
            limits = {"idle_in_transaction_session_timeout": str(IDLE_SECONDS * 1000)}
            options["connect_args"] = {"server_settings": {"application_name": _NAME, **limits}}
        self.engine: AsyncEngine = create_async_engine(self.url, **options)
        if not self.is_postgresql:
            _prepare_sqlite(self.engine)
        self._writer = self.engine.execution_options(**{_WRITES: True})
        self._sessions: AsyncEngine | None = None
        self._standing: list[Standing] = []
        self._on_change: list[Callable[[], None]] = []

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection that only reads."""
        async with _named(), self.engine.connect() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection whose every query sees the same moment."""
        engine = self.engine
        if self.is_postgresql:
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        async with _named(), engine.connect() as connection:
            if self.is_postgresql:
                await connection.execute(_NO_LIMIT)  # it locks nothing, and a backup packs between two tables
            yield connection

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Give a transaction: all of it is durable at the end, or nothing.

        Raises:
            OperationError: the database is gone, locked or full.
            ConflictError: it was `fenced`, and may not be committed any more.

        """
        async with _named(), self._writer.begin() as connection:
            yield connection
            if fence := _fence.get():
                await fence(connection)
            changed = connection.info.pop(_CHANGED, False)
        if changed:
            for tell in self._on_change:
                tell()

    @staticmethod
    @contextlib.contextmanager
    def fenced(fence: Fence | None) -> Iterator[None]:
        """Ask *fence* at the end of each transaction that this task writes meanwhile, before it is committed."""
        before = _fence.set(fence)
        try:
            yield
        finally:
            _fence.reset(before)

    @staticmethod
    def mark_changed(connection: AsyncConnection) -> None:
        """Have whoever asked by `when_changed` told once the transaction of *connection* is committed."""
        connection.info[_CHANGED] = True

    def when_changed(self, tell: Callable[[], None]) -> None:
        """Call *tell* after each transaction of this process that was marked."""
        self._on_change.append(tell)

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        """Give a PostgreSQL connection that is nobody else's (asyncpg's own): for what belongs to a session.

        Raises:
            OperationError: the database is gone.

        """
        if self._sessions is None:
            self._sessions = create_async_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with _named():
            async with asyncio.timeout(_CONNECT_SECONDS):
                connection = await self._sessions.connect()
            try:
                raw = (await connection.get_raw_connection()).driver_connection
                assert raw is not None
                for setting in _ALIVE:
                    await raw.execute(f"SET {setting}")
                yield raw
            finally:
                await connection.invalidate()  # closed, not given back: what it held ends with it
                await connection.close()

    def standing(self, query: str) -> Standing:
        """Return a way to ask *query* all the time; it is closed with the store."""
        found = Standing(self, query)
        self._standing.append(found)
        return found

    async def unblock(self, seconds: float = IDLE_SECONDS) -> int:
        """End sessions of ours that keep others waiting and have waited *seconds* for their server; returns how many.

        PostgreSQL's own limit does not see a server that was stopped between two messages of one statement.

        Raises:
            OperationError: the database is gone.

        """
        if not self.is_postgresql:
            return 0
        async with self.read() as connection:
            return int((await connection.execute(_UNBLOCK, {"name": _NAME, "seconds": seconds})).scalar_one())

    async def close(self) -> None:
        """Drop every connection."""
        for each in self._standing:
            await each.close()
        await self.engine.dispose()


class Standing:
    """A query that is asked all the time: prepared once on a session of its own, without a transaction around it.

    A transaction is two more messages to the database and back, and the pool asks whether the connection lives; here a
    session that broke is replaced once, and the query asked again.
    """

    def __init__(self, store: Store, query: str) -> None:
        """Ask *query* (PostgreSQL's `$1`) of *store*; nothing connects before the first time."""
        self._store = store
        self._query = query
        self._stack = contextlib.AsyncExitStack()
        self._prepared: Any = None

    async def ask(self, *values: Any) -> list[Any]:
        """Return the rows. One caller at a time.

        Raises:
            OperationError: the database does not answer.

        """
        async with _named():
            if self._prepared is not None:
                try:
                    return await self._fetch(values)
                except Exception:  # noqa: BLE001 - the session is no good, whatever it says: a new one decides
                    await self.close()
            try:
                session = await self._stack.enter_async_context(self._store.session())
                self._prepared = await session.prepare(self._query)
                return await self._fetch(values)
            except BaseException as error:
                await self.close()
                if isinstance(error, CasemateError | OSError | TimeoutError) or not isinstance(error, Exception):
                    raise
                raise OperationError("the database did not answer", hint="check that it runs") from error

    async def close(self) -> None:
        """Drop the session."""
        self._prepared = None
        with contextlib.suppress(Exception):  # what is gone cannot be closed
            await self._stack.aclose()

    async def _fetch(self, values: tuple[Any, ...]) -> list[Any]:
        async with asyncio.timeout(_CONNECT_SECONDS):
            rows: list[Any] = await self._prepared.fetch(*values)
        return rows


def driver_url(url: str) -> str:
    """Return *url* with the driver we use.

    Raises:
        ConfigError: neither sqlite nor postgresql.

    """
    scheme, colon, rest = url.partition(":")
    driver = _DRIVERS.get(scheme.partition("+")[0])
    refusal = ConfigError(
        "the database URL is not one of sqlite or postgresql",
        hint="postgresql://user:password@host/database, or leave it out for SQLite in the fleet's directory",
    )
    if not colon or driver is None:
        raise refusal
    try:
        return make_url(f"{driver}:{rest}").render_as_string(hide_password=False)
    except ArgumentError as error:
        raise refusal from error


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file."""
    return f"sqlite:///{path}"


@contextlib.asynccontextmanager
async def _named() -> AsyncIterator[None]:
    """Turn a database that fails into an error with a hint; its text may hold values, so only its kind is kept."""
    try:
        yield
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        if isinstance(error, sa.exc.IntegrityError):
            raise
        cause = getattr(error, "orig", None) or error
        text = re.sub(r"\s+", " ", str(cause).splitlines()[0] if str(cause) else type(cause).__name__)[:120]
        raise OperationError(
            f"the database did not answer: {text}", hint="check that it runs, and that its disk has space"
        ) from error


def _prepare_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not decide when a transaction begins
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
