"""A fleet that is not there: the decisions of `plan` against devices that fail with a known probability.

What is simulated is only the devices: when they come for an offer, whether they fail, whether they say so. Who is
offered what, and when to stop, is the code that a real rollout runs.
"""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections.abc import Callable, Iterator
from typing import Final

from casemate.fleet.rollout.plan import Action, Decision, Plan, Progress, Tally, decide
from casemate.fleet.rollout.states import Event, State, move

_ARRIVAL: Final = 1800.0
"""Mean seconds until a device that may have the offer comes for it: half an adaptive check-in interval."""
_EARLY: Final = 600.0
"""Mean seconds until a failure shows, when it says so."""
_LOOK: Final = 300.0


@dataclasses.dataclass(frozen=True)
class World:
    """What the devices do. *fail_rate*: of those that take the release; *baseline*: of those that do not.

    *silent*: the share of failures that never report (a brick).
    """

    fail_rate: float
    baseline: float = 0.005
    silent: float = 0.3


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How it ended. *exposed*: devices that took the release. *lost*: those that failed. *hours*: simulated."""

    exposed: int
    lost: int
    state: State
    hours: float
    batches: int
    looks: int
    why: str


Watcher = Callable[[float, Tally, Decision], None]


def simulate(plan: Plan, world: World, seed: int, watcher: Watcher | None = None) -> Outcome:
    """Run one rollout to its end, or to where a person would be asked. Deterministic for a *seed*."""
    draw = random.Random(seed)  # noqa: S311 - a simulation, not a secret
    fleet = _Fleet(plan, world, draw)
    state, progress, now, looks = move(State.APPROVED, Event.START), Progress(), 0.0, 0
    while state is State.RUNNING:
        looks += 1
        decision = decide(plan, progress, fleet.tally)
        progress = decision.progress
        if watcher:
            watcher(now, fleet.tally, decision)
        if decision.action is Action.OFFER:
            fleet.offer(progress.limit, now)
        elif decision.action is Action.STOP:
            state = move(state, Event.STOP)
        elif decision.action is Action.FINISH:
            state = move(state, Event.FINISH)
        if state is State.RUNNING:
            now = fleet.until_news(now)
    return Outcome(fleet.taken, fleet.doomed, state, now / 3600, progress.batch + 1, looks, decision.why)


class _Fleet:
    """The devices that may have the offer, as events in time."""

    def __init__(self, plan: Plan, world: World, draw: random.Random) -> None:
        self._plan, self._world, self._draw = plan, world, draw
        self._events: list[tuple[float, int, str]] = []
        self._offered = 0
        self._count = 0
        self.taken = self.doomed = self._good = self._failed = self._silent = 0

    @property
    def tally(self) -> Tally:
        """What a server would know."""
        return Tally(offered=self.taken, good=self._good, failed=self._failed, silent=self._silent)

    def offer(self, limit: int, now: float) -> None:
        """Let the next devices, up to *limit* in all, take the release from now on."""
        for _ in range(limit - self._offered):
            self._push(now + self._draw.expovariate(1 / _ARRIVAL), "take")
        self._offered = limit

    def until_news(self, now: float) -> float:
        """Let time pass to the next look at which something has changed; returns the new time."""
        look = now
        changed = False
        while self._events and not changed:
            look = max(look + _LOOK, self._events[0][0])
            while self._events and self._events[0][0] <= look:
                moment, _, what = heapq.heappop(self._events)
                self._happen(moment, what)
                changed = True
        return look

    def _happen(self, now: float, what: str) -> None:
        if what == "take":
            self.taken += 1
            for moment, later in self._fate(now):
                self._push(moment, later)
        elif what == "good":
            self._good += 1
        elif what == "failed":
            self._failed += 1
        else:
            self._silent += 1

    def _fate(self, now: float) -> Iterator[tuple[float, str]]:
        end = now + self._plan.soak
        if self._draw.random() >= self._world.fail_rate:
            yield end, "good"
            return
        self.doomed += 1
        if self._draw.random() < self._world.silent:
            yield end + self._plan.patience, "silent"
        else:
            yield min(end, now + self._draw.expovariate(1 / _EARLY)), "failed"

    def _push(self, moment: float, what: str) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, what))
