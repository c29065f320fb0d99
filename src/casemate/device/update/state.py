"""The one durable state of updates, and what each event makes of it. Pure: `generations` writes it, then acts.

`good` runs unless there is a trial; 0 stands for "no generation" (the device serves what it was given by hand).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from casemate.device.update.generation import NUMBER_LIMIT, Generation
from casemate.device.update.states import WAITING, Event, Phase, step
from casemate.errors import NotFoundError, OperationError, PolicyDeniedError, UntrustedDataError, UsageError
from casemate.formats.decoding import MALFORMED
from casemate.formats.manifest import Name, Sha256

TRIES: Final = 3
DENIED_LIMIT: Final = 256
REASON_LIMIT: Final = 500

_Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_LIMIT)]


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model container that a generation made, or is about to: no other container is ever removed."""

    name: Name
    number: _Number


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it.

    `previous`: the good one before, kept until `good` has soaked. `pending`: the number of what is being fetched or
    is staged; `trial`: of what is armed or on trial; `content`: the content digest of either. `soak_until`: seconds
    since the epoch, 0 when nothing soaks. `next`: the number of the next generation; numbers are never used again.
    """

    schema: Literal[1] = 1
    phase: Phase = Phase.IDLE
    good: _Number = 0
    previous: _Number = 0
    pending: _Number = 0
    trial: _Number = 0
    tries: Annotated[int, msgspec.Meta(ge=0, le=TRIES)] = 0
    content: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    soak_until: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    next: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_LIMIT)] = 1
    denied: Annotated[tuple[Sha256, ...], msgspec.Meta(max_length=DENIED_LIMIT)] = ()
    claims: Annotated[tuple[Claim, ...], msgspec.Meta(max_length=1024)] = ()
    last_error: Annotated[str, msgspec.Meta(max_length=REASON_LIMIT)] = ""

    @property
    def kept(self) -> frozenset[int]:
        """The generations that must stay on the disk."""
        return frozenset({self.good, self.previous, self.pending, self.trial} - {0})

    @property
    def unneeded(self) -> tuple[str, ...]:
        """The containers whose claim is by no kept generation; one that is kept may still share them."""
        return tuple(claim.name for claim in self.claims if claim.number not in self.kept)


def checked(state: State, content: str, models: tuple[str, ...], first_number: int = 1) -> State:
    """Note a newer, verified set with the digest *content*; *models* are the names of its models.

    It gets a number and, per model, the claim `<name>.g<number>`. The same content again keeps both and its phase.

    Raises:
        PolicyDeniedError: it was rolled back before.
        BusyError: a trial is under way.

    """
    if content in state.denied:
        raise PolicyDeniedError(
            "this update was rolled back on this device before", hint="it takes a newer release; `status` lists it"
        )
    if content == state.content and state.phase in WAITING:
        return state
    number = max(state.next, first_number)
    claims = tuple(Claim(f"{name}.g{number}", number) for name in models)
    return _after(
        state,
        Event.CHECKED,
        pending=number,
        content=content,
        next=number + 1,
        claims=state.claims + claims,
        last_error="",
    )


def withdrawn(state: State, reason: str) -> State:
    """Drop it: it is offered no more, or nobody wants it any more."""
    return _after(state, Event.WITHDRAWN, pending=0, content="", last_error=_reason(reason))


def fetching(state: State) -> State:
    """Note that its chunks begin to come, or come again."""
    return _after(state, Event.FETCHING, last_error="")


def interrupted(state: State, reason: str) -> State:
    """Note what held it up outside its content (network, disk): it goes on from here the next time."""
    return msgspec.structs.replace(state, last_error=_reason(reason))


def staged(state: State, number: int) -> State:
    """Note that all of generation *number* is durable.

    Raises:
        UsageError: another number is being fetched.

    """
    if number != state.pending:
        raise UsageError(f"generation {number} is not the one being fetched", hint="check for updates again")
    return _after(state, Event.STAGED, last_error="")


def armed(state: State) -> State:
    """Make the next start its trial."""
    return _after(state, Event.ARMED, pending=0, trial=state.pending, tries=TRIES)


def started(state: State) -> State:
    """Take a try away; the trial starts after this is durable.

    Raises:
        OperationError: none is left.

    """
    if state.trial and not state.tries:
        raise OperationError("the trial has no tries left", hint="roll it back")
    return _after(state, Event.STARTED, tries=state.tries - 1)


def passed(state: State, number: int, soak_until: int) -> State:
    """Take the trial *number* for good: the health gate said yes.

    Raises:
        UsageError: that is not the trial, or it has not started.

    """
    if not number or number != state.trial:
        raise UsageError(f"generation {number} is not on trial", hint="only a trial can become good")
    return _after(
        state,
        Event.PASSED,
        good=number,
        previous=state.good,
        trial=0,
        tries=0,
        content="",
        soak_until=max(1, soak_until),
        last_error="",
    )


def soaked(state: State) -> State:
    """End the soak: floors were raised to `good`, what was before it is no longer needed.

    Raises:
        NotFoundError: there is no generation to confirm.

    """
    if not state.good:
        raise NotFoundError("no update runs here yet", hint="fetch and apply one first")
    return _after(state, Event.SOAKED, previous=0, soak_until=0)


def failed(state: State, reason: str) -> State:
    """Give up the update under way: its content is denied, `good` stays.

    Raises:
        UsageError: none is under way.

    """
    return _after(
        state,
        Event.FAILED,
        pending=0,
        trial=0,
        tries=0,
        content="",
        denied=_deny(state, state.content),
        last_error=_reason(reason),
    )


def rolled_back(state: State, reason: str, good_content: str) -> State:
    """Go back, because somebody asked: from a trial to `good`, else from `good` to the one before.

    *good_content* is the digest of `good`. What was being fetched is dropped and not denied.

    Raises:
        NotFoundError: nothing is left to go back to.

    """
    if state.trial:
        return _after(state, Event.ROLLED_BACK, **_left(state, reason, state.content))
    if not state.previous:
        raise NotFoundError(
            "there is no earlier generation to go back to",
            hint="the one before is kept only until the new one has soaked or was confirmed",
        )
    return _after(
        state,
        Event.ROLLED_BACK,
        **_left(state, reason, good_content),
        good=state.previous,
        previous=0,
        soak_until=0,
    )


def forgotten(state: State, names: tuple[str, ...]) -> State:
    """Note that the containers *names* are gone."""
    return msgspec.structs.replace(state, claims=tuple(claim for claim in state.claims if claim.name not in names))


def recovered(
    known: State, proven: Sequence[Generation], *, reason: str, settled: bool, following: int, soak_until: int
) -> State:
    """Make a state out of what is still believed (*known*) and of the generations that prove themselves.

    The newest goes on trial again when there is another to go back to: nobody can say any more whether it was good.
    *settled*: it must run now, so the one before is preferred. *following* is a number above every one used.

    Raises:
        UntrustedDataError: `update-state`: there is nothing to run.

    """
    usable = {one.number: one for one in proven if one.content_digest not in known.denied}
    order = sorted(usable, key=lambda number: (number == known.previous, number != known.pending, number), reverse=True)
    if not order:
        raise UntrustedDataError(
            f"no generation can run: {reason}",
            check="update-state",
            hint="restore it; or remove `gen` and `state` and update again: only the list of what failed is lost",
        )
    newest, *older = order
    claims = {name: Claim(name, one.number) for one in proven for name in one.containers}
    state = State(
        phase=Phase.GOOD,
        good=newest,
        soak_until=soak_until,
        next=max(known.next, following),
        denied=known.denied,
        claims=tuple(({claim.name: claim for claim in known.claims} | claims).values()),
        last_error=_reason(f"recovered: {reason}"),
    )
    if settled or not older:
        return state
    return msgspec.structs.replace(
        state,
        phase=Phase.ARMED,
        good=older[0],
        trial=newest,
        tries=TRIES,
        soak_until=0,
        content=usable[newest].content_digest,
    )


def encode(state: State) -> bytes:
    """Make the body of the state file.

    Raises:
        UntrustedDataError: as `parse`: what could not be read back is not written.

    """
    raw = msgspec.json.encode(state)
    parse(raw)
    return raw


def parse(raw: bytes) -> State:
    """Read a body whose seal was verified, and hold its fields against each other.

    Raises:
        UntrustedDataError: `update-state-form`.

    """
    try:
        state = _decoder.decode(raw)
    except MALFORMED as error:
        raise UntrustedDataError(f"the state of updates is not well-formed: {error}", check=_FORM) from error
    if (problem := _inconsistency(state)) is not None:
        raise UntrustedDataError(f"the state of updates contradicts itself: {problem}", check=_FORM)
    return state


_FORM: Final = "update-state-form"
_decoder: Final = msgspec.json.Decoder(State)


def _inconsistency(state: State) -> str | None:
    """Say what cannot be; None when it holds together."""
    on_trial = state.phase in (Phase.ARMED, Phase.TRIAL)
    if bool(state.trial) != on_trial or bool(state.pending) != (state.phase in WAITING):
        return "phase and generation"
    if bool(state.content) != bool(state.trial or state.pending):
        return "generation and content"
    if (state.tries and not on_trial) or (state.phase is Phase.ARMED and state.tries != TRIES):
        return "phase and tries"
    if (state.phase in (Phase.GOOD, Phase.FLOOR_RAISED) or state.soak_until or state.previous) and not state.good:
        return "nothing is good"
    numbers = [number for number in (state.good, state.previous, state.pending, state.trial) if number]
    if len(set(numbers)) != len(numbers) or any(number >= state.next for number in numbers):
        return "numbers of generations"
    return None


def _after(state: State, event: Event, **fields: Any) -> State:
    return msgspec.structs.replace(state, phase=step(state.phase, event), **fields)


def _left(state: State, reason: str, content: str) -> dict[str, Any]:
    return {
        "pending": 0,
        "trial": 0,
        "tries": 0,
        "content": "",
        "denied": _deny(state, content),
        "last_error": _reason(reason),
    }


def _deny(state: State, content: str) -> tuple[str, ...]:
    """Add *content*; the oldest fall off the end of a full list."""
    others = tuple(old for old in state.denied if old != content)
    return (*others, *((content,) if content else ()))[-DENIED_LIMIT:]


def _reason(text: str) -> str:
    """Fit a reason into the file and one line."""
    return " ".join(text.split())[:REASON_LIMIT]
