"""Keeps to the owner's limits while something is fetched: waits for bandwidth, counts the day's bytes, minds the hours.

The day's count is durable before the bytes are asked for, in steps: a crash counts a step that was not used, never less
than what crossed the line. Days are UTC, hours are the device's local time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from casemate.clock import Clock
from casemate.config import Settings, parse_hours
from casemate.device.home import write_atomic
from casemate.device.update import pace
from casemate.device.update.pace import Bucket, Limits, NotNowError, Spent
from casemate.errors import OperationError

STEP: Final = 4 << 20
_LIMIT: Final = 256
_DAY: Final = 86_400


def limits_of(settings: Settings) -> Limits:
    """Return what the settings allow."""
    return Limits(
        rate=settings["update.rate"] << 10,
        daily=settings["update.daily"] << 20,
        hours=parse_hours(settings["update.hours"]),
    )


class Pacer:
    """One for everything that is fetched in a run; `close` it."""

    def __init__(
        self,
        path: Path,
        limits: Limits,
        clock: Clock,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Keep the day's count at *path* (the home's `update/spent`)."""
        self._path = path
        self._limits = limits
        self._clock = clock
        self._sleep = sleep
        self._spent = self._read() if limits.daily else Spent()
        self._kept = self._spent
        self._bucket = Bucket.full(limits.rate, clock.monotonic()) if limits.rate else None

    def ask(self, size: int) -> None:
        """Ask to fetch *size* bytes now, before the first of them.

        Raises:
            NotNowError: outside the allowed hours, or the day's budget is used up.
            OperationError: the count cannot be written.

        """
        moment = time.localtime(self._clock.wall())
        wait = pace.minutes_until_open(self._limits.hours, moment.tm_hour * 60 + moment.tm_min)
        if wait:
            raise NotNowError(f"updates are fetched in {wait // 60} h {wait % 60} min (update.hours)", reason="hours")
        if not self._limits.daily:
            return
        day = self._day()
        if pace.left(self._spent, self._limits.daily, day) < size:
            raise NotNowError("today's bytes are used up (update.daily)", reason="budget")
        self._spent = self._spent.on(day)
        wanted = self._spent.bytes + size
        if self._kept.day < self._spent.day or self._kept.bytes < wanted:
            self._write(Spent(self._spent.day, max(wanted, min(self._limits.daily, self._spent.bytes + STEP))))

    def taken(self, size: int) -> None:
        """Count *size* bytes that came, and wait until more may."""
        self._spent = self._spent.plus(size)
        if self._bucket is not None:
            self._bucket, wait = self._bucket.take(size, self._clock.monotonic())
            if wait:
                self._sleep(wait)

    def close(self) -> None:
        """Give back what was counted and not fetched.

        Raises:
            OperationError: the count cannot be written.

        """
        if self._limits.daily and self._kept != self._spent:
            self._write(self._spent)

    def _day(self) -> int:
        return max(0, int(self._clock.wall())) // _DAY

    def _read(self) -> Spent:
        """Return the count; one that does not parse is a day used up."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_LIMIT), type=Spent)
        except FileNotFoundError:
            return Spent()
        except (msgspec.DecodeError, UnicodeError):
            used_up = Spent(self._day(), self._limits.daily)
            self._write(used_up)
            return used_up
        except OSError as error:
            raise OperationError(f"cannot read {self._path}: {error.strerror}", hint="run as its owner") from error

    def _write(self, spent: Spent) -> None:
        write_atomic(self._path, msgspec.json.encode(spent) + b"\n")
        self._kept = spent
