"""Where an update stands: the whole state machine as one table, which also draws the page of the documentation.

A phase says how far the newest update came. Which generation is served is not a phase: `good` runs in all of them but
TRIAL, so a device always has one to run. Pure: `step` decides, `generations` makes it durable *before* acting on it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple

from casemate.errors import BusyError, UsageError


class Phase(enum.StrEnum):
    """How far the newest update came."""

    IDLE = "IDLE"
    CHECKED = "CHECKED"
    FETCHING = "FETCHING"
    STAGED = "STAGED"
    ARMED = "ARMED"
    TRIAL = "TRIAL"
    GOOD = "GOOD"
    FLOOR_RAISED = "FLOOR_RAISED"
    ROLLED_BACK = "ROLLED_BACK"


class Event(enum.StrEnum):
    """What can happen."""

    CHECKED = "checked"
    WITHDRAWN = "withdrawn"
    FETCHING = "fetching"
    STAGED = "staged"
    ARMED = "armed"
    STARTED = "started"
    PASSED = "passed"
    SOAKED = "soaked"
    FAILED = "failed"
    ROLLED_BACK = "rolled back"


class Row(NamedTuple):
    """From each of *phases*, *event* leads to *to* (None: where it was). *means* is for people."""

    event: Event
    phases: tuple[Phase, ...]
    to: Phase | None
    means: str


_P = Phase
RESTING: Final = (_P.IDLE, _P.GOOD, _P.FLOOR_RAISED, _P.ROLLED_BACK)
"""Nothing is under way."""
WAITING: Final = (_P.CHECKED, _P.FETCHING, _P.STAGED)
"""An update is under way, and what runs is not touched by it yet."""
PENDING: Final = (*WAITING, _P.ARMED, _P.TRIAL)
"""An update is under way."""

ROWS: Final = (
    Row(Event.CHECKED, (*RESTING, *WAITING), _P.CHECKED, "a newer signed set was verified; it gets a number"),
    Row(Event.WITHDRAWN, WAITING, _P.IDLE, "it is not offered any more; what was fetched is dropped"),
    Row(Event.FETCHING, (_P.CHECKED, _P.FETCHING), _P.FETCHING, "its chunks come, and come again after a cut"),
    Row(Event.STAGED, (_P.FETCHING,), _P.STAGED, "all of it is on the disk, proven and durable"),
    Row(Event.ARMED, (_P.STAGED,), _P.ARMED, "the next start is its trial; it has three tries"),
    Row(Event.STARTED, (_P.ARMED, _P.TRIAL), _P.TRIAL, "a try is taken away, durably, and then it starts"),
    Row(Event.PASSED, (_P.TRIAL,), _P.GOOD, "the health gate says yes; the old one is kept and the soak begins"),
    Row(Event.SOAKED, (_P.GOOD,), _P.FLOOR_RAISED, "the soak is over: nothing older runs any more"),
    Row(Event.SOAKED, (_P.IDLE, _P.FLOOR_RAISED, _P.ROLLED_BACK, *PENDING), None, "the same, for what runs meanwhile"),
    Row(Event.FAILED, PENDING, _P.ROLLED_BACK, "it is bad, or its tries are used up: its content is denied"),
    Row(Event.ROLLED_BACK, tuple(_P), _P.ROLLED_BACK, "a person asked for the one before; its content is denied"),
)

TABLE: Final[Mapping[tuple[Phase, Event], Phase]] = {
    (phase, row.event): row.to or phase for row in ROWS for phase in row.phases
}


def step(phase: Phase, event: Event) -> Phase:
    """Return the phase after *event*.

    Raises:
        BusyError: an armed update has to finish its trial first.
        UsageError: it makes no sense there.

    """
    after = TABLE.get((phase, event))
    if after is not None:
        return after
    if phase in (Phase.ARMED, Phase.TRIAL) and event in (Event.CHECKED, Event.WITHDRAWN, Event.FETCHING):
        raise BusyError("an update is on trial", hint="wait for its end, or roll it back")
    raise UsageError(f"an update that is {phase} cannot be {event}", hint="see docs/reference/update-states.md")


def mermaid() -> str:
    """Draw the table as a Mermaid state diagram; what leads back to its own phase is left to the table."""
    edges: dict[tuple[str, Phase], list[str]] = {}
    for row in ROWS:
        if row.event is Event.ROLLED_BACK or row.to is None:
            continue
        for phase in row.phases:
            if phase != row.to:
                edges.setdefault((phase, row.to), []).append(row.event)
    lines = [f"    {old} --> {new}: {', '.join(events)}" for (old, new), events in edges.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {Phase.IDLE}", *lines])
