"""Which of several servers does what must be done once: a session's advisory locks on PostgreSQL.

A duty has a name and the name a lock. The server that holds it does the duty until its session ends: because it stops,
because it died, or because the database lost it. The lock is then free and the next to ask has it. On SQLite there is
one machine; whoever asks leads.

A server that was stopped (a debugger, a suspended machine, an hour without a processor) dies for nobody: its kernel
goes on answering for it. So the session must say something every few seconds, or the database ends it. And a server
that wakes up does not know that it slept: what it decided before must not be written after another one leads. Each
transaction of a duty is therefore fenced: its last question is whether the very session that got the lock still has it,
and if not nothing of it is committed. The times fit: a transaction that was begun is ended by the database
(`IDLE_SECONDS` of `store`) before the lock it was fenced by can be somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import logging
import zlib
from collections.abc import Awaitable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import CasemateError, ConflictError, OperationError
from casemate.fleet.store import Store
from casemate.fleet.store.database import IDLE_SECONDS, Fence

_CLASS: Final = 0x4C454144
"""The first half of every lock's key; migrations have another."""
_ANSWER_SECONDS: Final = 5.0
KEEP_SECONDS: Final = 5.0
"""How often the session says something."""
SILENT_SECONDS: Final = 45
"""Without a word for so long it ends. More than `KEEP_SECONDS`, an answer and `IDLE_SECONDS` together."""
assert SILENT_SECONDS > KEEP_SECONDS + _ANSWER_SECONDS + IDLE_SECONDS
_WHO: Final = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_HELD: Final = sa.text("""
    SELECT 1 FROM pg_locks held JOIN pg_stat_activity session ON session.pid = held.pid
    WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 2
      AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND held.classid = CAST(:class AS oid) AND held.objid = CAST(:key AS oid)
      AND held.pid = :pid AND session.backend_start = :since
""")
_UNSIGNED: Final = 1 << 32
_log = logging.getLogger("casemate.fleet")


@dataclasses.dataclass(frozen=True, slots=True)
class _Session:
    """A session of the database; a number may be given to another one later, a number and a moment never."""

    pid: int
    since: dt.datetime


class Leader:
    """The duties of this process. One connection of its own holds every lock: no pool can hand it to somebody else."""

    def __init__(self, store: Store) -> None:
        """Lead in the fleet of *store*; nothing connects before the first question."""
        self._store = store
        self._held: set[str] = set()
        self._session: Any = None
        self._who: _Session | None = None
        self._stack = contextlib.AsyncExitStack()
        self._turn = asyncio.Lock()

    async def leads(self, duty: str) -> bool:
        """Return whether this process may do *duty* now.

        Raises:
            OperationError: the database does not answer: nobody here leads.

        """
        if not self._store.is_postgresql:
            return True
        async with self._turn:
            return bool(await self._answered(self._ask(duty)))

    def fence(self, duty: str) -> Fence | None:
        """Return what refuses to commit an act of *duty* once this server does not lead it any more."""
        who = self._who
        if not self._store.is_postgresql:
            return None

        async def check(connection: AsyncConnection) -> None:
            if who is not None:
                values = {"class": _CLASS, "key": _key(duty) % _UNSIGNED, "pid": who.pid, "since": who.since}
                if (await connection.execute(_HELD, values)).first() is not None:
                    return
            raise ConflictError(f"another server leads by now: nothing of {duty} was written")

        return check

    async def keep(self) -> None:
        """Say something, so that the database does not take this server for one that was stopped.

        Raises:
            OperationError: the session is gone, and all that was led.

        """
        async with self._turn:
            if self._session is not None:
                await self._answered(self._session.fetchval("SELECT 1"))

    async def resign(self) -> None:
        """Give every duty to whoever asks next."""
        async with self._turn:
            await self._drop()

    async def _answered(self, question: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await question
        except BaseException as error:
            await self._drop()
            if isinstance(error, CasemateError) or not isinstance(error, Exception):
                raise
            raise OperationError(f"nobody leads here: the database did not answer ({type(error).__name__})") from error

    async def _ask(self, duty: str) -> bool:
        if self._session is None:
            self._session = await self._stack.enter_async_context(self._store.session())
            await self._session.execute(f"SET idle_session_timeout = {SILENT_SECONDS * 1000}")
            self._who = _Session(*await self._session.fetchrow(_WHO))
        if duty in self._held:
            await self._session.fetchval("SELECT 1")  # an answer: the session, and with it the lock, is still ours
            return True
        if await self._session.fetchval("SELECT pg_try_advisory_lock($1::int4, $2::int4)", _CLASS, _key(duty)):
            self._held.add(duty)
            _log.info("leads: %s", duty)
            return True
        return False

    async def _drop(self) -> None:
        self._session = self._who = None
        self._held.clear()
        with contextlib.suppress(Exception):  # what is gone cannot be closed
            await self._stack.aclose()


def _key(duty: str) -> int:
    """Return the second half of a duty's key, as PostgreSQL's signed int4."""
    value = zlib.crc32(duty.encode())
    return value - (1 << 32) if value >= 1 << 31 else value
