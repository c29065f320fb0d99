"""A reference policy proposed from one device that a person believes to be good. Proposed: a person reads and signs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Final

from casemate.errors import NotFoundError, UsageError
from casemate.fleet.verifier import ProvenEvidence
from casemate.formats import fleet_api
from casemate.formats.evidence import OWN_PCRS, EventKind
from casemate.formats.fleet_api import Inventory
from casemate.formats.reference_policy import Allowed, ReferencePolicy, encode, parse_proposal
from casemate.ids import parse_name

LIFE_SECONDS: Final = 365 * 86_400
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, slots=True)
class Coming:
    """A model that a device will serve and has not measured yet: its name, and the SHA-256 (hex) of its file."""

    name: str
    digest: str

    @property
    def event(self) -> Allowed:
        """Return what serving it measures."""
        return Allowed(EventKind.MODEL, self.name, self.digest)


def coming(text: str, inventory: bytes | None) -> Coming:
    """Read *text*, NAME=DIGEST as `casemate model add` prints it, or NAME of a model in a device's *inventory*.

    An inventory is the device's claim: the person who reads the proposal compares the digest with the model's file.

    Raises:
        UsageError: it is neither.
        NotFoundError: the inventory names no such model, or several.

    """
    name, equals, digest = text.partition("=")
    parse_name(name, "model")
    if equals:
        digest = digest.removeprefix("sha256:")
        if not _DIGEST.fullmatch(digest):
            raise UsageError(
                f"{text!r} is not NAME=sha256:DIGEST", hint="the digest is the SHA-256 of the model's file"
            )
        return Coming(name, digest)
    items = fleet_api.parse(inventory, Inventory).items if inventory else ()
    found = {item.digest for item in items if (item.kind, item.name) == ("model", name) and item.digest}
    if len(found) != 1:
        raise NotFoundError(
            f"the device has not said which file its model {name!r} is",
            hint=f"say it: --model {name}=sha256:DIGEST, as `casemate model add` and `sha256sum` print it",
        )
    return Coming(name, str(found.pop()))


def propose(
    proven: ProvenEvidence, *, name: str, version: int, now: float, models: Iterable[Coming] = ()
) -> ReferencePolicy:
    """Return a policy that lists exactly what this device showed, and the *models* that are coming, for a year.

    Raises:
        UntrustedDataError: `policy-form`: it showed too little to make a policy of (nothing was measured).

    """
    events = {Allowed(event.kind, event.name, event.digest, event.version) for event in proven.events}
    events |= {model.event for model in models}
    policy = ReferencePolicy(
        schema=1,
        name=name,
        version=version,
        issued=int(now),
        expires=int(now) + LIFE_SECONDS,
        pcrs={index: (value.hex(),) for index, value in sorted(proven.pcrs.items()) if index not in OWN_PCRS},
        events=tuple(sorted(events)),
    )
    return parse_proposal(encode(policy))
