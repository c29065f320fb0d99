"""One time for all servers of a fleet: the database's. Whether something has ended must not depend on who is asked.

Each server measures how far its own clock is from the database's and adds that: a nonce, a token or a session that one
gave ends at the same moment for the others, whatever their clocks say. On SQLite there is one machine and one clock.
"""

from __future__ import annotations

import logging
from typing import Final

import sqlalchemy as sa

from casemate.clock import Clock
from casemate.fleet.store import Store

SETTLE_SECONDS: Final = 60.0
_TRUSTED_TRIP: Final = 1.0
"""Seconds a question to the database may take to say something about clocks."""
_WORTH_SAYING: Final = 1.0
_NOW: Final = sa.text("SELECT extract(epoch FROM clock_timestamp())::float8")
_log = logging.getLogger("casemate.fleet")


class FleetClock:
    """The machine's clock, moved to the database's by `settle`."""

    def __init__(self, own: Clock, store: Store) -> None:
        """Show *own*, until the first `settle`."""
        self._own = own
        self._store = store
        self._ahead = 0.0
        self._said = 0.0

    def wall(self) -> float:
        """Return the fleet's time in seconds since the epoch."""
        return self._own.wall() + self._ahead

    def monotonic(self) -> float:
        """Return this machine's seconds that never go backwards."""
        return self._own.monotonic()

    async def settle(self) -> float:
        """Ask the database; returns how many seconds its clock is ahead of this machine's.

        Raises:
            OperationError: the database does not answer: what was measured before stays.

        """
        if not self._store.is_postgresql:
            return 0.0
        async with self._store.read() as connection:
            asked, began = self._own.wall(), self._own.monotonic()
            theirs = float((await connection.execute(_NOW)).scalar_one())
            trip = self._own.monotonic() - began
        if trip <= _TRUSTED_TRIP:
            measured = theirs - (asked + trip / 2)
            self._ahead = measured if abs(measured) > trip else 0.0  # what is within the error is no difference
        if abs(self._ahead - self._said) >= _WORTH_SAYING:
            self._said = self._ahead
            _log.warning("this machine's clock is %+.1f s off the database's, which counts", -self._ahead)
        return self._ahead
