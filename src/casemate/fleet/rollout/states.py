"""The life of a rollout, as a table."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from casemate.errors import ConflictError


class State(enum.StrEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    APPROVED = "approved"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    ABORTED = "aborted"


class Event(enum.StrEnum):
    """What moves it."""

    APPROVE = "approve"
    START = "start"
    STOP = "stop"
    """The statistics say stop, or cannot say go: a person looks first."""
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    FINISH = "finish"


TABLE: Final[Mapping[tuple[State, Event], State]] = {
    (State.DRAFT, Event.APPROVE): State.APPROVED,
    (State.DRAFT, Event.ABORT): State.ABORTED,
    (State.APPROVED, Event.START): State.RUNNING,
    (State.APPROVED, Event.ABORT): State.ABORTED,
    (State.RUNNING, Event.STOP): State.PAUSED,
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.RUNNING, Event.ABORT): State.ABORTED,
    (State.RUNNING, Event.FINISH): State.DONE,
    (State.PAUSED, Event.RESUME): State.RUNNING,
    (State.PAUSED, Event.ABORT): State.ABORTED,
}
"""Every move that exists. A stop is a pause first; only a person aborts."""

OFFERING: Final = frozenset({State.RUNNING})
"""States in which devices are offered the generation."""
ENDED: Final = frozenset({State.DONE, State.ABORTED})


def move(state: State, event: Event) -> State:
    """Return the state after *event*.

    Raises:
        ConflictError: the table has no such move.

    """
    after = TABLE.get((state, event))
    if after is None:
        possible = ", ".join(sorted(move.value for here, move in TABLE if here is state)) or "nothing"
        raise ConflictError(f"cannot {event.value} a rollout that is {state.value}", hint=f"possible: {possible}")
    return after
