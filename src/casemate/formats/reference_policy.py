"""What a good device looks like: the PCR values and the events a person has signed for. Without one, nothing is good.

A policy is a DSSE envelope over canonical JSON, signed with an Ed25519 key that no server holds. It has a version that
only rises and an end. Everything in it is a list of what may be: what is not listed is not known, and what is not known
is not affirmed. There is no wildcard, no default and no way to leave a check out: `pcrs` and `required` have entries.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Annotated, Final, Literal

import msgspec

from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import envelope
from casemate.formats.decoding import MALFORMED
from casemate.formats.evidence import OWN_PCRS, STACK, Digest, EventKind, PcrIndex, Word

TYPE: Final = "application/vnd.casemate.reference-policy.v1+json"
LIMIT: Final = 512 * 1024

Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,62}\Z")]
Moment = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Version = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
Values = Annotated[tuple[Digest, ...], msgspec.Meta(min_length=1, max_length=64)]


class Allowed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """One thing that may be measured. `version` is for people: the digest decides."""

    kind: EventKind
    name: Word
    digest: Digest
    version: Word = ""


class ReferencePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`pcrs`: for each PCR that firmware extends, the values it may hold. `required`: kinds that must be in the log."""

    schema: Literal[1]
    name: Name
    version: Version
    issued: Moment
    expires: Moment
    pcrs: Annotated[dict[PcrIndex, Values], msgspec.Meta(min_length=1, max_length=22)]
    events: Annotated[tuple[Allowed, ...], msgspec.Meta(min_length=1, max_length=4096)]
    required: Annotated[tuple[EventKind, ...], msgspec.Meta(min_length=1, max_length=16)] = tuple(sorted(STACK))


@dataclasses.dataclass(frozen=True)
class VerifiedPolicy:
    """A policy whose signature, form and version were checked. `digest` names its exact bytes."""

    policy: ReferencePolicy
    digest: str

    @functools.cached_property
    def listed(self) -> frozenset[tuple[EventKind, str, str]]:
        """Kind, name and digest of everything that may be measured."""
        return frozenset((one.kind, one.name, one.digest) for one in self.policy.events)

    @functools.cached_property
    def named(self) -> frozenset[tuple[EventKind, str]]:
        """Kind and name alone: what has one of these and another digest was altered."""
        return frozenset((one.kind, one.name) for one in self.policy.events)


_encoder: Final = msgspec.json.Encoder()  # fields in their order; PCR numbers sort below
_decoder: Final = msgspec.json.Decoder(ReferencePolicy)


def encode(policy: ReferencePolicy) -> bytes:
    """Return the payload that a person signs."""
    return _encoder.encode(msgspec.structs.replace(policy, pcrs=dict(sorted(policy.pcrs.items()))))


def parse_proposal(payload: bytes) -> ReferencePolicy:
    """Read an unsigned proposal (what `fleet policy learn` printed and a person may have edited).

    Raises:
        UntrustedDataError: `policy-form`.

    """
    try:
        policy = _decoder.decode(payload) if len(payload) <= LIMIT else _refuse("it is too large")
    except MALFORMED as error:
        raise UntrustedDataError(f"the policy is not well-formed: {error}", check="policy-form") from error
    if OWN_PCRS & set(policy.pcrs):
        _refuse("it fixes a PCR whose value the event log explains")
    if not set(policy.required) >= STACK:
        _refuse("it does not require the agent, the sandbox and the engine to be measured")
    if policy.expires <= policy.issued:
        _refuse("it ends before it begins")
    return policy


def sign(policy: ReferencePolicy, key: SigningKey) -> bytes:
    """Return the signed policy.

    Raises:
        UntrustedDataError: `policy-form`: it could not be used.

    """
    return envelope.seal(encode(parse_proposal(encode(policy))), TYPE, key)


def verify(raw: bytes, *, public: bytes, above: int = 0) -> VerifiedPolicy:
    """Check a signed policy: by the Ed25519 key *public*, of a version above *above*.

    Raises:
        UntrustedDataError: `envelope-form`, `envelope-signature`, `policy-form`, or `policy-version` it is not newer.

    """
    found = envelope.parse(raw, TYPE, LIMIT)
    envelope.require_signature(found, TYPE, public)
    policy = parse_proposal(found.payload)
    if encode(policy) != found.payload:
        _refuse("it is not in its one spelling")
    if policy.version <= above:
        raise UntrustedDataError(
            f"policy {policy.name} {policy.version} is not newer than {above}",
            check="policy-version",
            hint="sign it again with a higher version",
        )
    return VerifiedPolicy(policy, hashlib.sha256(raw).hexdigest())


def _refuse(why: str) -> ReferencePolicy:
    raise UntrustedDataError(f"the policy cannot be used: {why}", check="policy-form")
