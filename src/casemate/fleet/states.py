"""What state a device can be in, what changes it, and what it may do there. A table, and nothing but.

pending      asked to join; a person must say yes
enrolled     one of ours
quarantined  cut off from everything but us
wiping       ordered to destroy its keys at the next contact; never granted anything again
wiped        it proved that it did
revoked      out
replaced     its asset tag is carried by another device now
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from casemate.errors import PolicyDeniedError


class State(StrEnum):
    """The states of a device's record."""

    PENDING = "pending"
    ENROLLED = "enrolled"
    QUARANTINED = "quarantined"
    WIPING = "wiping"
    WIPED = "wiped"
    REVOKED = "revoked"
    REPLACED = "replaced"


class Event(StrEnum):
    """What can happen to it."""

    APPROVE = "approve"
    REVOKE = "revoke"
    QUARANTINE = "quarantine"
    RELEASE = "release"
    WIPE = "wipe"
    WIPED = "wiped"
    REPLACE = "replace"


class Use(StrEnum):
    """What a device with a valid certificate may ask for."""

    CHECK_IN = "check-in"  # and the wake stream, and acknowledging commands
    RENEW = "renew"
    REPORT = "report"  # inventory, journal checkpoints, evidence
    KEYS = "keys"


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.PENDING, Event.APPROVE): State.ENROLLED,
    (State.PENDING, Event.REVOKE): State.REVOKED,
    (State.PENDING, Event.REPLACE): State.REVOKED,
    (State.ENROLLED, Event.QUARANTINE): State.QUARANTINED,
    (State.ENROLLED, Event.WIPE): State.WIPING,
    (State.ENROLLED, Event.REVOKE): State.REVOKED,
    (State.ENROLLED, Event.REPLACE): State.REPLACED,
    (State.QUARANTINED, Event.RELEASE): State.ENROLLED,
    (State.QUARANTINED, Event.WIPE): State.WIPING,
    (State.QUARANTINED, Event.REVOKE): State.REVOKED,
    (State.QUARANTINED, Event.REPLACE): State.REPLACED,
    (State.WIPING, Event.WIPED): State.WIPED,
    (State.WIPING, Event.REVOKE): State.REVOKED,
    (State.WIPING, Event.REPLACE): State.WIPING,  # a lost device is wiped although its successor is there
}

USES: Final[dict[State, frozenset[Use]]] = {
    State.ENROLLED: frozenset(Use),
    State.QUARANTINED: frozenset({Use.CHECK_IN, Use.RENEW, Use.REPORT}),
    State.WIPING: frozenset({Use.CHECK_IN}),
}
"""A state that is not here may do nothing."""

CARRIES_ASSET: Final = (State.PENDING, State.ENROLLED, State.QUARANTINED, State.WIPING)
"""States in which a device is the one that its asset tag stands for."""


def after(state: State, event: Event) -> State:
    """Return the state that *event* leads to.

    Raises:
        PolicyDeniedError: that cannot happen in this state.

    """
    new = TRANSITIONS.get((state, event))
    if new is None:
        possible = ", ".join(sorted(event for known, event in TRANSITIONS if known is state)) or "nothing"
        raise PolicyDeniedError(f"a device that is {state} cannot be changed by {event}", hint=f"possible: {possible}")
    return new


def may(state: State, use: Use) -> bool:
    """Return whether a device in *state* may do *use*."""
    return use in USES.get(state, frozenset())
