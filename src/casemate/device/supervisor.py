"""When to start a dead process again: a pure decision over its failures.

state          event              next state     action
RUNNING        died               BACKING_OFF    restart after 0.25, 0.5, 1 ... 60 s
RUNNING        healthy 10 min     RUNNING        forget the failures
BACKING_OFF    delay over         RUNNING        start
any            > 5 in 10 min      NEEDS_TRIAGE   stay down; a person decides
any            refused for good   NEEDS_TRIAGE   the same failure would come back: signature, seccomp, memory
any            its lease is over  STOPPED        start again when the fleet grants one; no failure
"""

from __future__ import annotations

import collections
import dataclasses
from enum import StrEnum
from typing import Final

FIRST_DELAY: Final = 0.25
LONGEST_DELAY: Final = 60.0
LIMIT: Final = 5
WINDOW: Final = 600.0


class State(StrEnum):
    """Where a supervised process stands."""

    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing off"
    NEEDS_TRIAGE = "needs triage"
    STOPPED = "stopped"


@dataclasses.dataclass
class RestartPolicy:
    """The failures of one process. Times are monotonic seconds given by the caller."""

    state: State = State.STARTING
    reason: str = ""
    _failures: collections.deque[float] = dataclasses.field(default_factory=collections.deque)
    _since: float = 0.0

    def started(self, now: float) -> None:
        """Note that the process serves."""
        self.state, self.reason, self._since = State.RUNNING, "", now

    def stopped(self, reason: str) -> None:
        """Note that it must not serve now; no failure of its own."""
        self.state, self.reason = State.STOPPED, reason

    def died(self, now: float, reason: str, *, transient: bool = True) -> float | None:
        """Return how many seconds to wait before the next start, or None to stay down."""
        if self.state is State.RUNNING and now - self._since >= WINDOW:
            self._failures.clear()
        while self._failures and now - self._failures[0] > WINDOW:
            self._failures.popleft()
        self._failures.append(now)
        self.reason = reason
        if not transient or len(self._failures) > LIMIT:
            self.state = State.NEEDS_TRIAGE
            return None
        self.state = State.BACKING_OFF
        return float(min(FIRST_DELAY * 2 ** (len(self._failures) - 1), LONGEST_DELAY))

    @property
    def failures(self) -> int:
        """How many failures count now."""
        return len(self._failures)
