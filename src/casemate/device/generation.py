"""Which generation a start serves: asked before the first process starts, because a trial costs a try when it is.

A device that never took an update has none, and serves what it was given by hand. A state that does not prove itself
stops the start: see `device.update.generations`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from casemate.config import Settings
from casemate.device import store as containers
from casemate.device.containers import SUFFIX
from casemate.device.home import Home
from casemate.device.ownership import rights_of_owner
from casemate.device.update import traces


@dataclasses.dataclass(frozen=True)
class Policy:
    """What the generation says about apps and the guard; see `update.kinds`."""

    apps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    guard: bytes = b""


@dataclasses.dataclass(frozen=True)
class Booted:
    """What to serve beside, or instead of, what the device was given by hand."""

    served: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """Container by the name that its model is served under."""
    hidden: frozenset[str] = frozenset()
    """Containers that belong to updates: served as the generation says, never by their own names."""
    policy: Policy = dataclasses.field(default_factory=Policy)
    trial: bool = False
    unsettled: bool = False
    content: str = ""
    """What is served, by its content digest; empty: no generation."""
    note: str = ""

    def over(self, held: Mapping[str, Path]) -> dict[str, Path]:
        """Return what can be served by name: *held* (container by name), and what the generation puts over it."""
        plain = {name: path for name, path in held.items() if name not in self.hidden}
        return {**plain, **self.served}


NOTHING: Final = Booted()


def boot(home: Home, settings: Settings) -> Booted:
    """Decide what this start serves; a trial has one try less when this returns.

    Raises:
        UntrustedDataError: no generation proves itself, or the state or the floors were changed or are old ones.

    """
    if not traces.has_any(home.update):
        return NOTHING
    from casemate.device.update import counted, desk, kinds  # noqa: PLC0415 - only a device that takes updates pays

    counted.hold(home.update, settings["keystore.tpm"])
    names = tuple(containers.names(home))
    with rights_of_owner(home.update):
        store = desk.store(home.update, settings, lambda: names)
        booted = store.boot()
        state = store.state()
        generation = booted.generation
        policy = kinds.read_policy(generation, store.directory(generation.number)) if generation else kinds.Policy()
    item = generation.item("model") if generation else None
    return Booted(
        served={item.name: containers.path_of(home, item.container)} if item else {},
        hidden=frozenset(claim.name for claim in state.claims),
        policy=Policy(policy.apps, policy.guard),
        trial=booted.trial,
        unsettled=booted.trial or state.soak_until > 0,
        content=generation.content_digest if generation else "",
        note=booted.note,
    )


def container(name: str, path: Path) -> str:
    """Return what the container at *path* is called, when that is not *name*."""
    called = path.name.removesuffix(SUFFIX)
    return called if called != name else ""
