"""What changed, heard by every server of the fleet: a table that is read on, and a nudge that says "read now".

A change is a row, written in the transaction of what changed: it is there when that is, and not otherwise. A nudge
carries nothing, so a lost, late or forged one harms nobody: without any the table is read every few seconds. Nudges
come from PostgreSQL's NOTIFY, sent with the commit itself; from a message bus; from this process's own commits.

Reading on misses nothing. SQLite has one writer at a time, so ids come in the order of commits. On PostgreSQL a
transaction that began earlier may commit later: a row carries the number of its transaction, and what was not visible
in the snapshot of the reading before is what is new. No clock takes part.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import CasemateError
from casemate.fleet.store import Store, tables

CHANNEL: Final = "casemate_change"
POLL_SECONDS: Final = 0.25
"""Between two readings where nobody nudges: SQLite, whose other writers are commands on the same machine."""
QUIET_SECONDS: Final = 5.0
"""The same while a nudge can come: it is only for the one that got lost."""
GATHER_SECONDS: Final = 0.02
"""After a nudge: what comes together is read together."""
_KEPT: Final = 3600.0
_BACK_OFF: Final = 1.0
_log = logging.getLogger("casemate.fleet")


async def note_change(connection: AsyncConnection, device: str, kind: str, now: float) -> None:
    """Have every process of the fleet hear that *device* changed, once the caller's transaction is committed."""
    values: dict[str, Any] = {"device_id": device, "kind": kind, "created": now}
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        values["xact"] = sa.text("CAST(CAST(pg_current_xact_id() AS text) AS bigint)")
    await connection.execute(sa.insert(tables.change).values(**values))
    if postgresql:
        await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))  # equal ones of a transaction become one
    Store.mark_changed(connection)


class ChangeReader:
    """Reads what changed since the last call. Nothing is missed; what commits during a call may be read twice."""

    def __init__(self, store: Store) -> None:
        """Begin with what changes after the first call."""
        self._store = store
        self._last: Any = None

    async def poll(self) -> list[str]:
        """Return the devices that changed."""
        before = self._last
        async with self._store.read() as connection:
            query = _SNAPSHOT if self._store.is_postgresql else _NEWEST
            # taken first: what commits between the two queries is read now and once more, never not at all
            newest = (await connection.execute(query)).scalar()
            unread = _UNSEEN if self._store.is_postgresql else _AFTER
            rows = () if before is None else (await connection.execute(unread, {"seen": before})).scalars().all()
        self._last = newest
        return list(dict.fromkeys(rows))


async def prune(store: Store, now: float) -> None:
    """Delete changes that everybody has read long ago."""
    newest = sa.select(sa.func.max(_change.id)).scalar_subquery()  # stays: SQLite would give its id again
    async with store.write() as connection:
        await connection.execute(sa.delete(tables.change).where(_change.created < now - _KEPT, _change.id < newest))


_change = tables.change.c
_NEWEST: Final = sa.select(sa.func.coalesce(sa.func.max(_change.id), 0))
_AFTER: Final = sa.select(_change.device_id).where(_change.id > sa.bindparam("seen")).order_by(_change.id)
_SNAPSHOT: Final = sa.text("SELECT CAST(pg_current_snapshot() AS text)")
_UNSEEN: Final = sa.text(
    "SELECT device_id FROM change"
    " WHERE xact >= CAST(CAST(pg_snapshot_xmin(CAST(CAST(:seen AS text) AS pg_snapshot)) AS text) AS bigint)"
    " AND NOT pg_visible_in_snapshot(CAST(CAST(xact AS text) AS xid8), CAST(CAST(:seen AS text) AS pg_snapshot))"
    " ORDER BY id"
)


class Nudges(Protocol):
    """Somewhere nudges come from and go to."""

    def listening(self, nudge: Callable[[], None]) -> contextlib.AbstractAsyncContextManager[asyncio.Future[None]]:
        """Call *nudge* for each nudge while the context is open; the future it gives is done when the line is lost."""
        ...


class Ears:
    """Reads on whenever it is nudged, and now and then anyway; tells what it heard."""

    def __init__(self, store: Store, tell: Callable[[list[str]], None], lines: tuple[Nudges, ...] = ()) -> None:
        """Read from *store*; each of *lines* can nudge."""
        self._store = store
        self._reader = ChangeReader(store)
        self._tell = tell
        self._lines = lines
        self._nudged = asyncio.Event()
        self._lost: set[int] = set(range(len(lines)))

    @property
    def connected(self) -> bool:
        """Whether every line stands: readings can be rare then."""
        return bool(self._lines) and not self._lost

    def nudge(self) -> None:
        """Have it read now."""
        self._nudged.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Hear until *stopping*."""
        keepers = [asyncio.create_task(self._keep(number)) for number in range(len(self._lines))]
        self._store.when_changed(self.nudge)
        try:
            while not stopping.is_set():
                self._nudged.clear()
                await self._read()
                await self._wait(stopping)
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    async def _read(self) -> None:
        try:
            self._tell(await self._reader.poll())
        except CasemateError as error:
            _log.warning("hear: %s", error.message)
            await asyncio.sleep(_BACK_OFF)
            self._nudged.set()

    async def _wait(self, stopping: asyncio.Event) -> None:
        waits = [asyncio.create_task(each.wait()) for each in (self._nudged, stopping)]
        seconds = QUIET_SECONDS if self.connected else POLL_SECONDS
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        if self._nudged.is_set() and not stopping.is_set():
            await asyncio.sleep(GATHER_SECONDS)

    async def _keep(self, number: int) -> None:
        """Hold one line open; what happened while it was down is read when it stands again."""
        while True:
            try:
                async with self._lines[number].listening(self.nudge) as lost:
                    self._lost.discard(number)
                    self.nudge()  # after listening began: nothing falls between
                    await lost
            except Exception as error:  # noqa: BLE001 - whatever ended it, it is opened again
                _log.warning("hear: %s", getattr(error, "message", type(error).__name__))
            self._lost.add(number)
            self.nudge()
            await asyncio.sleep(_BACK_OFF)


class Notices:
    """PostgreSQL's LISTEN, on a connection of its own."""

    def __init__(self, store: Store) -> None:
        """Listen in *store*."""
        self._store = store

    @contextlib.asynccontextmanager
    async def listening(self, nudge: Callable[[], None]) -> AsyncIterator[asyncio.Future[None]]:
        """See `Nudges.listening`."""
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ended(_connection: object) -> None:
            if not lost.done():
                lost.set_result(None)

        async with self._store.session() as session:
            session.add_termination_listener(ended)
            await session.add_listener(CHANNEL, lambda *_: nudge())
            probe = asyncio.create_task(_probe(session, ended))
            try:
                yield lost
            finally:
                probe.cancel()


async def _probe(session: Any, ended: Callable[[object], None]) -> None:
    """Ask the line now and then: one that is dead and does not know it says nothing."""
    while True:
        await asyncio.sleep(QUIET_SECONDS)
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                await session.fetchval("SELECT 1")
        except Exception:  # noqa: BLE001 - whatever it was, the line is not one to rely on
            ended(session)
            return
