"""How fast, how much and when a device may fetch: pure decisions over numbers; the clock and the disk are the caller's.

A device shares a home's or a shop's line with its owner. The bandwidth limit is a token bucket, the daily budget counts
bytes that crossed the line (also those fetched twice), allowed hours are local time, retries are spread by full jitter.
When a device looks is its timer's business (`device.service`): each has its own minute of the hour.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final

import msgspec

from casemate.errors import BusyError

DAY_MINUTES: Final = 24 * 60
BURST_SECONDS: Final = 0.05
BURST_BYTES: Final = 64 * 1024
BACKOFF_BASE: Final = 1.0
BACKOFF_CAP: Final = 60.0
_DOUBLINGS: Final = 16


class NotNowError(BusyError):
    """Fetching may not go on now and will later, by itself. *reason* is `hours`, `budget` or `server`."""

    code = "not_now"

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        """Keep the *reason* for whoever decides when to try again."""
        super().__init__(message, hint=hint or "what was fetched is kept; the next try goes on from there")
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the owner allows: *rate* in bytes a second, *daily* in bytes (0: no limit), *hours* from `parse_hours`."""

    rate: int = 0
    daily: int = 0
    hours: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A token bucket that lends: what is taken beyond its level is waited for afterwards.

    In any time T at most `burst + rate * T` bytes pass, and one piece more. *level* in bytes, *at* in seconds.
    """

    rate: float
    burst: float
    level: float
    at: float

    @classmethod
    def full(cls, rate: float, now: float) -> Bucket:
        """Return a full bucket; its burst is a twentieth of a second, and never less than one read."""
        burst = max(rate * BURST_SECONDS, BURST_BYTES)
        return cls(rate, burst, burst, now)

    def take(self, size: int, now: float) -> tuple[Bucket, float]:
        """Take *size* bytes at *now*; returns the bucket after that, and the seconds to wait before the next."""
        gained = max(0.0, now - self.at) * self.rate
        level = min(self.burst, self.level + gained) - size
        return dataclasses.replace(self, level=level, at=max(now, self.at)), max(0.0, -level / self.rate)


class Spent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes fetched on a *day* (days since the epoch)."""

    day: Annotated[int, msgspec.Meta(ge=0, le=1 << 32)] = 0
    bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)] = 0

    def on(self, day: int) -> Spent:
        """Return what was spent on *day*. A clock that goes back to yesterday gives no new budget."""
        return Spent(day, 0) if day > self.day else self

    def plus(self, size: int) -> Spent:
        """Return this and *size* bytes more."""
        return Spent(self.day, self.bytes + size)


def left(spent: Spent, limit: int, day: int) -> int:
    """Return how many bytes may still be fetched on *day*; *limit* is not 0."""
    return max(0, limit - spent.on(day).bytes)


def minutes_until_open(hours: tuple[tuple[int, int], ...], minute: int) -> int:
    """Return how many minutes after *minute* of the day fetching is allowed; 0 when it is now."""
    if not hours or any(begin <= minute < end for begin, end in hours):
        return 0
    return min((begin - minute) % DAY_MINUTES for begin, _ in hours)


def backoff(attempt: int, draw: float, *, base: float = BACKOFF_BASE, cap: float = BACKOFF_CAP) -> float:
    """Return the seconds to wait before try *attempt* + 1: full jitter, *draw* is random in [0, 1)."""
    return draw * min(cap, base * 2.0 ** min(attempt, _DOUBLINGS))
