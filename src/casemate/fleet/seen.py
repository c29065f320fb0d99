"""Check-ins are written behind: half a second of them in one transaction, sorted, whatever their number.

A statement per check-in costs the database thirty times as much and the server five times. A crash loses at most the
last half second of "seen", which the next check-ins bring again; nothing that must not be lost goes this way.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Final

from casemate.errors import BusyError
from casemate.fleet.ingest import Sink
from casemate.fleet.metrics import Metrics
from casemate.formats.fleet_api import LARGEST, CheckIn, Health

FLUSH_SECONDS: Final = 0.5
MAX_WAITING: Final = 200_000
"""Devices whose check-in waits for the database; more are told to come back."""
BUCKET: Final = 300


@dataclasses.dataclass(slots=True)
class _Seen:
    last_seen: float
    state: str
    agent: str
    generation: str
    skew: float
    sequence: int


@dataclasses.dataclass(slots=True)
class _Rollup:
    samples: int
    temperature: float
    memory: int
    load: float
    requests: int
    refusals: int
    faults: int

    def add(self, health: Health) -> None:
        self.samples += 1
        self.temperature = max(self.temperature, health.temperature_c)
        self.memory = max(self.memory, health.memory_used)
        self.load = max(self.load, health.load)
        self.requests = _sum(self.requests, health.requests)
        self.refusals = _sum(self.refusals, health.refusals)
        self.faults = _sum(self.faults, health.integrity_failures)


class WriteBehind:
    """One per process; a supervised task calls `flush` every `FLUSH_SECONDS`."""

    def __init__(self, sink: Sink, metrics: Metrics, *, limit: int = MAX_WAITING) -> None:
        """Hand batches to *sink*."""
        self.sink = sink
        self._metrics = metrics
        self._limit = limit
        self._seen: dict[str, _Seen] = {}
        self._rollups: dict[tuple[str, int], _Rollup] = {}

    def put(self, device: str, message: CheckIn, now: float) -> None:
        """Take a check-in.

        Raises:
            BusyError: the database has been away for so long that there is no room.

        """
        if len(self._seen) >= self._limit and device not in self._seen:
            raise BusyError("the server cannot keep up")
        skew = round(message.clock - now, 1)
        self._seen[device] = _Seen(now, message.state, message.agent, message.generation, skew, message.sequence)
        if message.health is None:
            return
        key = (device, int(now) // BUCKET * BUCKET)
        rollup = self._rollups.get(key)
        if rollup is None:
            if len(self._rollups) >= self._limit:
                self._metrics.lost_samples.inc()
                return
            rollup = self._rollups[key] = _Rollup(0, -100.0, 0, 0.0, 0, 0, 0)
        rollup.add(message.health)

    @property
    def waiting(self) -> int:
        """How many devices wait to be written."""
        return len(self._seen)

    async def flush(self) -> int:
        """Hand on what waits; returns for how many devices. On failure nothing is lost and it is tried again.

        Raises:
            OperationError: the database did not take it.

        """
        if not self._seen:
            return 0
        seen, self._seen = self._seen, {}
        rollups, self._rollups = self._rollups, {}
        started = time.perf_counter()
        try:
            await self.sink.take(
                [(key, *_row(seen[key])) for key in sorted(seen)],
                [(*key, *_row(rollups[key])) for key in sorted(rollups)],
            )
        except BaseException:
            self._restore(seen, rollups)
            self._metrics.flushes.labels("failed").inc()
            raise
        self._metrics.flushes.labels("done").inc()
        self._metrics.flush_seconds.observe(time.perf_counter() - started)
        return len(seen)

    def _restore(self, seen: dict[str, _Seen], rollups: dict[tuple[str, int], _Rollup]) -> None:
        self._seen = {**seen, **self._seen}
        for key, newer in self._rollups.items():
            older = rollups.get(key)
            rollups[key] = newer if older is None else _merged(older, newer)
        self._rollups = rollups


def _row(record: _Seen | _Rollup) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record.__slots__)


def _merged(older: _Rollup, newer: _Rollup) -> _Rollup:
    return _Rollup(
        older.samples + newer.samples,
        max(older.temperature, newer.temperature),
        max(older.memory, newer.memory),
        max(older.load, newer.load),
        _sum(older.requests, newer.requests),
        _sum(older.refusals, newer.refusals),
        _sum(older.faults, newer.faults),
    )


def _sum(one: int, other: int) -> int:
    """Return a sum that the database holds: one beyond it would fail the whole batch, other devices' words too."""
    return min(one + other, LARGEST)
