"""Which of several servers does what must be done once: a session's advisory locks on PostgreSQL.

A duty has a name and the name a lock. The server that holds it does the duty until its session ends: because it stops,
because it died, or because the database lost it. The lock is then free and the next to ask has it. On SQLite there is
one machine; whoever asks leads.

Two servers may still overlap for the length of one act (a session that broke is noticed at the next one). So a duty is
always an act whose transactions would do nothing a second time; leading spares work, it is not what makes it safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from typing import Any, Final

from casemate.errors import CasemateError, OperationError
from casemate.fleet.store import Store

_CLASS: Final = 0x4C454144
"""The first half of every lock's key; migrations have another."""
_ANSWER_SECONDS: Final = 5.0
_log = logging.getLogger("casemate.fleet")


class Leader:
    """The duties of this process. One connection of its own holds every lock: no pool can hand it to somebody else."""

    def __init__(self, store: Store) -> None:
        """Lead in the fleet of *store*; nothing connects before the first question."""
        self._store = store
        self._held: set[str] = set()
        self._session: Any = None
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
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    return await self._ask(duty)
            except BaseException as error:
                await self._drop()
                if isinstance(error, CasemateError) or not isinstance(error, Exception):
                    raise
                raise OperationError(
                    f"nobody leads here: the database did not answer ({type(error).__name__})"
                ) from error

    async def resign(self) -> None:
        """Give every duty to whoever asks next."""
        async with self._turn:
            await self._drop()

    async def _ask(self, duty: str) -> bool:
        if self._session is None:
            self._session = await self._stack.enter_async_context(self._store.session())
        if duty in self._held:
            await self._session.fetchval("SELECT 1")  # an answer: the session, and with it the lock, is still ours
            return True
        if await self._session.fetchval("SELECT pg_try_advisory_lock($1::int4, $2::int4)", _CLASS, _key(duty)):
            self._held.add(duty)
            _log.info("leads: %s", duty)
            return True
        return False

    async def _drop(self) -> None:
        self._session = None
        self._held.clear()
        with contextlib.suppress(Exception):  # what is gone cannot be closed
            await self._stack.aclose()


def _key(duty: str) -> int:
    """Return the second half of a duty's key, as PostgreSQL's signed int4."""
    value = zlib.crc32(duty.encode())
    return value - (1 << 32) if value >= 1 << 31 else value
