"""Injected time: decisions take a `Clock`, so tests never sleep and never patch."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for records, monotonic time for deadlines."""

    def wall(self) -> float:
        """Return seconds since the Unix epoch (may jump)."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go backwards (no meaning across a reboot)."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def wall(self) -> float:
        """Return `time.time()`."""
        return time.time()

    def monotonic(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()
