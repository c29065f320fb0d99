"""A reference policy proposed from one device that a person believes to be good. Proposed: a person reads and signs."""

from __future__ import annotations

from typing import Final

from casemate.fleet.verifier import ProvenEvidence
from casemate.formats.evidence import OWN_PCRS
from casemate.formats.reference_policy import Allowed, ReferencePolicy, encode, parse_proposal

LIFE_SECONDS: Final = 365 * 86_400


def propose(proven: ProvenEvidence, *, name: str, version: int, now: float) -> ReferencePolicy:
    """Return a policy that lists exactly what this device showed, for a year.

    Raises:
        UntrustedDataError: `policy-form`: it showed too little to make a policy of (nothing was measured).

    """
    events = {Allowed(event.kind, event.name, event.digest, event.version) for event in proven.events}
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
