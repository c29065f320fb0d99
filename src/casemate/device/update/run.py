"""The commands of the update process: one function each, from a desk to a result that `--json` shows."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from casemate.device.update import obtain, trial
from casemate.device.update import trust as trusting
from casemate.device.update.desk import Desk
from casemate.device.update.imports import TarSource
from casemate.device.update.state import TRIES
from casemate.device.update.states import Phase
from casemate.errors import NotFoundError, OperationError

Result = dict[str, Any]


class FirstTrust(msgspec.Struct, frozen=True):
    """What a person trusts: *root* is a descriptor of the root's file."""

    root: int
    url: str
    channel: str
    pin: str
    accept_clock: bool = False
    forget_floors: bool = False


def trust(desk: Desk, first: FirstTrust) -> Result:
    """Take a first trust, or another one."""
    raw = _read(first.root)
    with desk.alone():
        given = trusting.establish(
            desk.directory,
            raw,
            url=first.url,
            channel=first.channel,
            pin=first.pin,
            allow_http=desk.settings["update.allow_http"],
            forget_floors=first.forget_floors,
        )
        if first.accept_clock:
            desk.floors.accept_clock(int(desk.clock.wall()))
    return {"url": given.url, "channel": given.channel, "root": given.digest}


def _read(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read(trusting.ROOT_LIMIT + 1)


def status(desk: Desk) -> Result:
    """Say where updates stand."""
    found: Result = desk.store.status().as_json()
    try:
        given = trusting.load(desk.directory)
        source = {"url": given.url, "channel": given.channel}
    except NotFoundError:
        source = {"url": "", "channel": ""}
    return {**found, **source}


def check(desk: Desk) -> Result:
    """Look whether an update waits."""
    with desk.alone(), desk.server() as source:
        return _builtins(obtain.check(desk, source))


def fetch(desk: Desk) -> Result:
    """Fetch and stage what is offered; what runs is not touched."""
    with desk.alone(), desk.server() as source:
        trial.end_soak(desk)
        return _obtained(desk, obtain.obtain(desk, source))


def bring_in(desk: Desk, tar: int) -> Result:
    """Fetch and stage from the export in the descriptor *tar*."""
    with desk.alone(), TarSource(tar) as source:
        return _obtained(desk, obtain.obtain(desk, source))


def _obtained(desk: Desk, found: obtain.Obtained | None) -> Result:
    state = str(desk.store.state().phase)
    if found is None:
        return {"staged": False, "generation": desk.store.state().good, "bytes": 0, "saved": 0, "state": state}
    return {"staged": True, "generation": found.number, "bytes": found.bytes, "saved": found.saved, "state": state}


def plan(desk: Desk) -> Result:
    """Say what `apply` would do, doing none of it."""
    state = desk.store.state()
    if state.phase in {Phase.ARMED, Phase.TRIAL}:
        return {"would": "try", "generation": state.trial, "bytes": 0}
    if state.phase is Phase.STAGED:
        return {"would": "switch", "generation": state.pending, "bytes": 0}
    with desk.alone(), desk.server() as source:
        found = obtain.check(desk, source)
    would = "fetch and switch" if found.available else "nothing"
    return {"would": would, "generation": state.next if found.available else state.good, "bytes": found.bytes}


def apply(desk: Desk) -> Result:
    """Fetch what is offered, unless it is staged; then switch to it, or arm it for the next start."""
    with desk.alone():
        trial.end_soak(desk)
        state = desk.store.state()
        fetched = None
        if state.phase not in {Phase.ARMED, Phase.TRIAL}:
            fetched = _ready(desk)
            if desk.store.state().phase is not Phase.STAGED:
                return {"applied": False, "generation": state.good, "state": str(desk.store.state().phase)}
            trial.arm(desk)
        saved = {"bytes": fetched.bytes, "saved": fetched.saved} if fetched else {}
        if not desk.port.running:
            state = desk.store.state()
            return {"applied": True, "generation": state.trial, "state": str(state.phase), **saved}
        done = trial.try_out(desk)
        return {"applied": True, **_builtins(done), **saved}


def _ready(desk: Desk) -> obtain.Obtained | None:
    """See that what is offered is staged. What was imported needs no network."""
    if desk.store.state().phase is Phase.STAGED and obtain.came_from_media(desk):
        return None
    with desk.server() as source:
        return obtain.obtain(desk, source)


def rollback(desk: Desk) -> Result:
    """Go back to the generation before."""
    with desk.alone():
        return _builtins(trial.roll_back(desk, "rolled back by a person"))


def confirm(desk: Desk) -> Result:
    """End the soak."""
    with desk.alone():
        return _builtins(trial.confirm(desk))


def settle(desk: Desk) -> Result:
    """Do what is due after a start."""
    with desk.alone():
        trial.settle(desk)
    return {}


def follow(desk: Desk) -> Result:
    """Do what the fleet's director says: take it, or go back."""
    pick = desk.direction().pick
    if pick is None or pick.action != "back" or pick.choice is None:
        return tick(desk)
    good = desk.good()
    if good is None or good.content_digest != pick.choice.content:
        return {"applied": False, "generation": desk.store.state().good, "state": str(desk.store.state().phase)}
    with desk.alone():
        return _builtins(trial.roll_back(desk, "taken back by the fleet"))


def say_where_it_stands(desk: Desk) -> None:
    """Tell the running device, for its fleet, what runs and what became of the fleet's pick."""
    if not desk.port.running:
        return
    state, good, pick = desk.store.state(), desk.good(), desk.direction().pick
    facts: Result = {"running": good.content_digest if good else ""}
    content = pick.choice.content if pick and pick.choice and pick.action == "take" else ""
    if content and content == facts["running"]:
        facts |= {"content": content, "outcome": "good", **desk.noted}
    elif content in state.denied:
        facts |= {"content": content, "outcome": "failed", "why": state.last_error, "tries": TRIES - state.tries}
    elif content in desk.unproven:  # no try was spent: it is taken once this device can prove itself
        facts |= {"content": content, "outcome": "failed", "why": desk.unproven[content]}
    desk.port.stands(facts)


def tick(desk: Desk) -> Result:
    """Do everything a device does by itself, in this order: settle, check, fetch, apply."""
    failed: OperationError | None = None
    try:
        settle(desk)
    except OperationError as error:  # the trial failed; what comes next may be its repair
        desk.say(error.message)
        failed = error
    done = apply(desk)
    if failed:
        raise failed
    return done


def _builtins(value: msgspec.Struct) -> Result:
    made: Result = msgspec.to_builtins(value)
    return made
