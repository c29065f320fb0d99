"""From a staged generation to a good one, or back: arm, switch, judge, and remember what was decided.

What is decided is durable before the device is told: a cut in between leaves a device that, when it starts again, does
what was decided. A generation that fails is denied for ever, and the one before serves again by itself.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Final

import msgspec

from casemate.device.admin import NoAnswerError
from casemate.device.update import gate, health, kinds
from casemate.device.update.desk import Desk
from casemate.device.update.generation import Generation
from casemate.device.update.states import Phase
from casemate.errors import CasemateError, NotFoundError, OperationError, UntrustedDataError
from casemate.formats import event

_REASON_LIMIT: Final = 200
_PAUSE: Final = 5.0
"""Seconds between two tries on a running device: a process that restarts needs some."""


class Applied(msgspec.Struct, frozen=True):
    """How it stands: `state` is the phase, `way` how engines changed ("" when no device runs)."""

    generation: int
    state: str
    way: str = ""
    seconds: float = 0.0


def arm(desk: Desk) -> int:
    """Make the next start the trial of what is staged; returns its number.

    Raises:
        UsageError: nothing is staged.
        CasemateError: it does not prove itself.

    """
    return desk.store.arm().trial


def try_out(desk: Desk) -> Applied:
    """Serve what is armed on the running device, judge it, and keep it or go back.

    Raises:
        UntrustedDataError: the vault or the engine refused it; it is denied, the one before serves.
        OperationError: it failed its health gate; it is denied, the one before serves.
        PolicyDeniedError: it is gated, and the fleet gives no key: no try is spent, and it is judged when it does.

    """
    while True:
        left = desk.store.state().trial
        with contextlib.suppress(NotFoundError, UntrustedDataError):  # what does not prove itself is given up below
            _require_lease(desk, desk.store.read(left))
        boot = desk.store.boot()
        if not boot.trial or boot.generation is None:
            _end_trial(desk, left, boot.note)
            raise OperationError(boot.note or "there is nothing to try", hint="see `casemate update status`")
        _record_trial(desk, boot.generation, boot.tries)
        if done := _attempt(desk, boot.generation, boot.tries):
            return done


def _require_lease(desk: Desk, generation: Generation) -> None:
    """Have a lease for a gated model before it is tried: that there is none says nothing of the generation.

    Raises:
        PolicyDeniedError: the fleet gives no key.
        OperationError: it was not reached.

    """
    item = generation.item("model")
    if not (item and item.gate):
        return
    try:
        desk.port.lease(item.gate)
    except CasemateError as error:
        desk.store.interrupted(error.message)
        if not isinstance(error, OperationError):
            desk.unproven[generation.content_digest] = error.message
        raise


def _end_trial(desk: Desk, left: int, reason: str) -> None:
    """Serve the good one again when the trial *left* was given up: its engine may run since an earlier try."""
    if left and desk.store.state().phase is Phase.ROLLED_BACK:
        try:
            generation = desk.store.read(left)
        except CasemateError:  # that it does not prove itself may be why it was given up
            _serve_good(desk)
        else:
            _after_return(desk, generation, reason)


def _record_trial(desk: Desk, generation: Generation, tries: int) -> None:
    desk.port.record(
        event.update_trial(
            generation=generation.number, content=generation.content_digest, tries=tries, now=desk.clock.wall()
        )
    )


def _attempt(desk: Desk, generation: Generation, tries: int) -> Applied | None:
    """Serve *generation* and judge it. None: that could not be done now, and *tries* are left to do it again.

    What is bad by what was measured, or by what the vault says of it, is denied at once. A device that restarts or is
    busy proves nothing: only when the last try is gone as well the generation is to blame.

    Raises:
        NoAnswerError: the device went away; the trial goes on with its next start.
        UntrustedDataError: the vault or the engine refused it.
        OperationError: it failed its health gate, or every try.

    """
    try:
        way, seconds = switch(desk, generation)
        facts = _measure(desk, generation)
    except NoAnswerError:
        raise
    except CasemateError as error:
        if tries and not isinstance(error, UntrustedDataError):
            desk.say(f"generation {generation.number} could not be judged, it is tried again: {error.message}")
            time.sleep(_PAUSE)
            return None
        give_up(desk, generation, error.message)
        raise _refused(error) from error
    _judge(desk, generation, facts)
    return Applied(generation.number, str(Phase.GOOD), way, seconds)


def _measure(desk: Desk, generation: Generation) -> gate.Facts:
    settings = desk.settings
    desk.say(f"generation {generation.number} is on trial")
    return health.measure(
        desk.port,
        generation,
        seconds=float(settings["engine.load_deadline"]),
        deadline=float(settings["engine.deadline"]),
    )


def _judge(desk: Desk, generation: Generation, facts: gate.Facts) -> None:
    """Hold *facts* against the health gate; keep the generation, or go back.

    Raises:
        OperationError: it failed; it is denied, the one before serves.

    """
    verdict = gate.judge(generation, facts)
    times = [answer.first_token_ms for answer in facts.answers if answer.first_token_ms is not None]
    desk.noted.update(first_token_ms=statistics.median(times) if times else None, memory_mib=facts.memory_mib)
    if not verdict.passed:
        give_up(desk, generation, verdict.text)
        raise OperationError(
            f"generation {generation.number} failed its health gate and was rolled back: {verdict.text}",
            hint="it is denied on this device; the publisher has to promote another one",
        )
    desk.store.mark_good(generation.number)
    desk.port.record(
        event.update_good(generation=generation.number, content=generation.content_digest, now=desk.clock.wall())
    )
    collect(desk)


def give_up(desk: Desk, generation: Generation, reason: str) -> None:
    """Deny the trial *generation* and serve the good one again."""
    desk.store.fail(reason)
    _after_return(desk, generation, reason)


def roll_back(desk: Desk, reason: str) -> Applied:
    """Go back because a person asks; a running device serves the one before at once.

    Raises:
        NotFoundError: there is nothing to go back to.
        PolicyDeniedError: what was before is below a floor.

    """
    store = desk.store
    before = store.state()
    left = store.read(before.trial or before.good) if before.trial or before.good else None
    after = store.rollback(reason)
    if left:
        _after_return(desk, left, reason)
    return Applied(after.good, str(after.phase))


def _after_return(desk: Desk, left: Generation, reason: str) -> None:
    """Leave *left*, then say so: a journal that fails does not keep a bad generation serving."""
    try:
        if desk.port.running:
            _serve_again(desk, left)
    finally:
        desk.port.record(
            event.update_rolled_back(
                generation=left.number,
                content=left.content_digest,
                reason=reason[:_REASON_LIMIT],
                now=desk.clock.wall(),
            )
        )
    collect(desk)


def _serve_again(desk: Desk, left: Generation) -> None:
    """Serve the good generation; without one, what the device was given by hand, if it was given anything."""
    good = desk.good()
    if good:
        switch(desk, good, waits=True)
    else:
        desk.port.take_policy({}, b"")
    item, kept = left.item("model"), good.item("model") if good else None
    if item and (kept is None or kept.name != item.name):
        if item.name in desk.port.containers():
            desk.port.serve(item.name, item.name)
        else:
            desk.port.drop(item.name)


def _serve_good(desk: Desk) -> None:
    """Serve the good generation on a running device, if it does not: whoever went back may have been cut off."""
    good = desk.good() if desk.port.running else None
    if good:
        try:
            switch(desk, good, waits=True)
        except CasemateError as error:
            desk.say(f"generation {good.number} does not serve: {error.message}")


def switch(desk: Desk, generation: Generation, *, waits: bool = False) -> tuple[str, float]:
    """Serve *generation*: its model beside or after the old engine, then its policy; returns how, and seconds.

    That it is served is measured before any of it is: also when it is gone back to. *waits*: a gated model without a
    lease takes its place, and starts when there is one.

    Raises:
        CasemateError: it did not come up; what served before still does.

    """
    policy = kinds.read_policy(generation, desk.store.directory(generation.number))
    desk.port.measure_generation(generation.content_digest)
    for kind, why in kinds.NOT_INSTALLED.items():
        if generation.item(kind):
            desk.say(f"the {kind} release of generation {generation.number} is kept and not installed: {why}")
    item = generation.item("model")
    told = desk.port.serve(item.name, item.container, item.gate, waits=waits) if item else {}
    desk.port.take_policy(policy.apps, policy.guard)
    return str(told.get("way", "no model")), float(told.get("seconds", 0))


def settle(desk: Desk) -> None:
    """Do what is due on a device that has started: judge a trial, end a soak.

    Raises:
        OperationError: the trial failed; the one before serves. Or its model waits for its fleet.
        PolicyDeniedError: its model is gated, and the fleet gives no key.

    """
    state = desk.store.state()
    if state.phase is Phase.TRIAL:
        generation = desk.store.read(state.trial)
        _require_lease(desk, generation)
        _record_trial(desk, generation, state.tries)
        if not _attempt(desk, generation, state.tries):  # whoever began it may have been cut off before the switch
            try_out(desk)
    elif state.phase is Phase.ROLLED_BACK:
        _serve_good(desk)
    end_soak(desk)


def end_soak(desk: Desk) -> bool:
    """Raise the floors when the good generation has been good for long enough."""
    risen = desk.store.soaked(desk.clock.wall())
    if risen:
        _after_soak(desk)
    return risen


def confirm(desk: Desk) -> Applied:
    """Raise the floors now: a person says that the good generation is good.

    Raises:
        NotFoundError: no update runs here.

    """
    state = desk.store.confirm()
    _after_soak(desk)
    return Applied(state.good, str(state.phase))


def _after_soak(desk: Desk) -> None:
    good = desk.store.state().good
    desk.port.record(event.update_floor_raised(generation=good, now=desk.clock.wall()))
    collect(desk)


def collect(desk: Desk) -> None:
    """Remove generations and containers that no state needs.

    What cannot be removed now is removed next time.
    """
    try:
        _collect(desk)
    except CasemateError as error:
        desk.say(f"old generations stay for now: {error.message}")


def _collect(desk: Desk) -> None:
    store = desk.store
    gone = store.gc().containers
    for name in gone:
        desk.port.remove_container(name)
    if gone:
        store.forget(gone)


def _refused(error: CasemateError) -> CasemateError:
    """Return *error* with what became of the update."""
    said = f"the new generation did not come up and was rolled back: {error.message}"
    hint = "it is denied on this device; what ran before still runs"
    if isinstance(error, UntrustedDataError):
        return UntrustedDataError(said, check=error.check, hint=hint)
    return OperationError(said, hint=hint)
