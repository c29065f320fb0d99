"""Judging evidence. Pure: bytes, the server's own record of the device and a signed policy in; a judgement out.

Two steps that cannot be taken in another order. `prove` finds out whether the evidence is this TPM's, for this nonce,
and whether log and PCR values are the ones that were signed; it raises, and nothing of what it refused is looked at.
`appraise` compares what was proven with the reference policy. There an answer is never "skipped": no policy, an expired
one, a PCR or an event it does not list, a required event that is missing: each is a reason, and the result is not
affirming.

What an attacker owns: the whole device but its TPM's keys. So the log may speak for our two PCRs and no other, a PCR
the policy does not list is a refusal rather than a zero, and the selection is compared for equality: a superset could
hide a log that explains somebody else's firmware.
"""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from casemate import __version__
from casemate.crypto.tpm_policy import pcr_digest
from casemate.errors import UntrustedDataError
from casemate.formats import ear, evidence, tpm
from casemate.formats.ear import Ear, Status, SubModule, Tier, TrustVector
from casemate.formats.evidence import OWN_PCRS, ZERO, Event, EventKind, UntrustedEvidence
from casemate.formats.reference_policy import ReferencePolicy, VerifiedPolicy
from casemate.formats.tpm import Quote

Level = Literal["L0", "L1", "L2", "L3"]

LEARNING_PCRS: Final = frozenset({0, 2, 4, 7})
"""What is quoted while there is no policy: firmware, its drivers, the boot loader, secure boot."""
RESULT_SECONDS: Final = ear.MAX_LIFE
_UNRECOGNISED: Final = 33
_TOLD: Final = 8
_PARTS: Final[dict[str, tuple[EventKind, ...]]] = {
    "agent": (EventKind.AGENT, EventKind.ENGINE),
    "sandbox": (EventKind.SANDBOX,),
    "policy": (EventKind.POLICY, EventKind.GUARD, EventKind.GENERATION),
    "model": (EventKind.MODEL,),
}
PARTS: Final = ("boot", *_PARTS)


@dataclasses.dataclass(frozen=True)
class TpmClock:
    """How far this TPM's life had gone. It only goes forward, unless its state was copied and put back."""

    reset_count: int
    restart_count: int
    clock: int


@dataclasses.dataclass(frozen=True)
class KnownTpm:
    """What the server's own record says. *trusted*: a listed maker signed for the endorsement key."""

    attestation_key: bytes  # TPMT_PUBLIC
    trusted: bool
    last: TpmClock | None = None


@dataclasses.dataclass(frozen=True)
class ProvenEvidence:
    """Evidence that this TPM signed for our nonce; `pcrs` holds every quoted value."""

    events: tuple[Event, ...]
    pcrs: Mapping[int, bytes]
    quote: Quote

    @property
    def clock(self) -> TpmClock:
        """Return the moment in the TPM's life."""
        return TpmClock(self.quote.reset_count, self.quote.restart_count, self.quote.clock)


@dataclasses.dataclass(frozen=True)
class PartResult:
    """The judgement of one part."""

    tier: Tier
    vector: TrustVector
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Appraisal:
    """The judgement: per part, and what it comes to."""

    parts: Mapping[str, PartResult]
    level: Level
    policy: str
    policy_version: int
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """Return the worst of the parts."""
        statuses: list[Status] = [_STATUS[part.tier] for part in self.parts.values()]
        return ear.worst(statuses)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return every reason, with the part it is about."""
        told = [f"{name}: {reason}" for name, part in self.parts.items() for reason in part.reasons]
        return (*told, *self.notes)


_STATUS: Final[dict[Tier, Status]] = {
    Tier.NONE: "none",
    Tier.AFFIRMING: "affirming",
    Tier.WARNING: "warning",
    Tier.CONTRAINDICATED: "contraindicated",
}


def wanted_pcrs(policy: VerifiedPolicy | None) -> frozenset[int]:
    """Return the PCRs a device is told to quote: those the policy lists and our own, exactly."""
    return (frozenset(policy.policy.pcrs) if policy else LEARNING_PCRS) | OWN_PCRS


def prove(given: UntrustedEvidence, *, nonce: bytes, known: KnownTpm, wanted: frozenset[int]) -> ProvenEvidence:
    """Prove that *given* is the answer of the TPM we know to *nonce*, over exactly the PCRs *wanted*.

    Raises:
        UntrustedDataError: `evidence-nonce`, `ak-attributes`, `quote-signature`, `quote-nonce`, `quote-signer`,
            `quote-selection`, `quote-digest`, `quote-clock`, `log-*`, `tpm-*`.

    """
    if not hmac.compare_digest(given.nonce, nonce):
        raise UntrustedDataError("the evidence answers another challenge", check="evidence-nonce")
    quote = _signed_quote(given, nonce, known)
    if quote.pcrs != wanted or frozenset(given.pcrs) != wanted:
        raise UntrustedDataError("the quote is over other PCRs than asked for", check="quote-selection")
    if not hmac.compare_digest(pcr_digest(given.pcrs), quote.digest):
        raise UntrustedDataError("the PCR values are not the ones the TPM signed", check="quote-digest")
    events, explained = evidence.replay(given.log)
    if evidence.differing(explained, {index: given.pcrs[index] for index in OWN_PCRS & wanted}):
        raise UntrustedDataError("the event log does not explain what was measured", check="log-replay")
    _check_clock(quote, known.last)
    return ProvenEvidence(events, given.pcrs, quote)


def _signed_quote(given: UntrustedEvidence, nonce: bytes, known: KnownTpm) -> Quote:
    public = tpm.parse_public(known.attestation_key)
    tpm.check_attestation_key(public)
    if not tpm.is_signed(public.key, tpm.parse_signature(given.signature), given.attest):
        raise UntrustedDataError("the quote is not signed by this device's TPM", check="quote-signature")
    quote = tpm.parse_quote(given.attest)
    if not hmac.compare_digest(quote.extra, nonce):
        raise UntrustedDataError("the quote answers another challenge", check="quote-nonce")
    if quote.qualified_signer != tpm.qualified_name(public):
        raise UntrustedDataError("the quote was signed below another hierarchy", check="quote-signer")
    return quote


def _check_clock(quote: Quote, last: TpmClock | None) -> None:
    """Refuse a TPM that is younger than it was: a copy of its state is running."""
    now = (quote.reset_count, quote.clock)
    if last and now < (last.reset_count, last.clock):
        raise UntrustedDataError("this TPM has lived less than it had before: a copy of it", check="quote-clock")


def quote_of(given: UntrustedEvidence) -> Quote:
    """Return the quote of evidence that was proven before, and kept."""
    return tpm.parse_quote(given.attest)


def appraise(proven: ProvenEvidence, *, policy: VerifiedPolicy | None, known: KnownTpm, now: float) -> Appraisal:
    """Judge *proven* by *policy*. Without a policy nothing is affirmed."""
    if policy is None:
        return _unjudged("no reference policy is in force", "", 0)
    rules = policy.policy
    if not rules.issued <= now < rules.expires:
        return _unjudged("the reference policy has expired or is not yet in force", rules.name, rules.version)
    parts = {"boot": _appraise_boot(proven.pcrs, rules)}
    for name, kinds in _PARTS.items():
        parts[name] = _appraise_events([event for event in proven.events if event.kind in kinds], kinds, policy)
    level, notes = _level(parts.values(), proven, known)
    return Appraisal(parts, level, rules.name, rules.version, notes)


def refused(check: str, message: str) -> Appraisal:
    """Return the judgement of evidence that `prove` refused: nothing is known but that somebody lied or broke."""
    vector = TrustVector(instance_identity=Tier.CONTRAINDICATED)
    result = PartResult(Tier.CONTRAINDICATED, vector, (f"{check}: {message}",))
    return Appraisal({"boot": result}, "L0", "", 0)


def _unjudged(why: str, name: str, version: int) -> Appraisal:
    nothing = PartResult(Tier.NONE, TrustVector(), (why,))
    return Appraisal(dict.fromkeys(PARTS, nothing), "L0", name, version)


def _appraise_boot(pcrs: Mapping[int, bytes], rules: ReferencePolicy) -> PartResult:
    """Compare the PCRs of the firmware with what the policy lists."""
    wrong = [index for index, allowed in sorted(rules.pcrs.items()) if pcrs[index].hex() not in allowed]
    if wrong:
        reasons = tuple(f"PCR {index} holds a value the policy does not list" for index in wrong)
        vector = TrustVector(instance_identity=Tier.AFFIRMING, executables=Tier.CONTRAINDICATED)
        return PartResult(Tier.CONTRAINDICATED, vector, reasons)
    good = Tier.AFFIRMING
    return PartResult(good, TrustVector(instance_identity=good, executables=good, hardware=good))


def _appraise_events(events: list[Event], kinds: Iterable[EventKind], policy: VerifiedPolicy) -> PartResult:
    """Judge the events of one part: altered is worse than unknown, unknown is worse than nothing wrong."""
    seen = {event.kind for event in events}
    missing = [kind for kind in kinds if kind in policy.policy.required and kind not in seen]
    foreign = [event for event in events if (event.kind, event.name, event.digest) not in policy.listed]
    altered = [event for event in foreign if (event.kind, event.name) in policy.named]
    unknown = [event for event in foreign if (event.kind, event.name) not in policy.named]
    reasons = (
        *(f"{event.kind} {event.name} is not the one the policy lists" for event in altered[:_TOLD]),
        *(f"{event.kind} {event.name} is unknown to the policy" for event in unknown[:_TOLD]),
        *(f"no {kind} was measured" for kind in missing),
    )
    if altered:
        return PartResult(Tier.CONTRAINDICATED, TrustVector(executables=Tier.CONTRAINDICATED), reasons)
    if unknown:
        return PartResult(Tier.WARNING, TrustVector(executables=_UNRECOGNISED), reasons)
    if missing:
        return PartResult(Tier.NONE, TrustVector(), reasons)
    return PartResult(Tier.AFFIRMING, TrustVector(executables=Tier.AFFIRMING))


def _level(parts: Iterable[PartResult], proven: ProvenEvidence, known: KnownTpm) -> tuple[Level, tuple[str, ...]]:
    """Return what the evidence comes to. L3 needs a known chip below a measured boot, all of it affirmed."""
    tiers = [part.tier for part in parts]
    if Tier.CONTRAINDICATED in tiers or Tier.NONE in tiers:
        return "L0", ()
    if any(tier is not Tier.AFFIRMING for tier in tiers):
        return "L2", ()
    notes = []
    if not known.trusted:
        notes.append("no listed maker vouches for this TPM")
    if all(value == ZERO for index, value in proven.pcrs.items() if index not in OWN_PCRS):
        notes.append("the firmware measured nothing: what ran before the agent is not known")
    return ("L2", tuple(notes)) if notes else ("L3", ())


def result(
    appraisal: Appraisal, *, device: str, nonce: bytes, certificate_digest: bytes, until: float, now: float
) -> Ear:
    """Return *appraisal* as an attestation result about *device*; it ends at *until*, or in fifteen minutes."""
    policy = f"{appraisal.policy}:{appraisal.policy_version}" if appraisal.policy else "none"
    return Ear(
        eat_profile=ear.PROFILE,
        iat=int(now),
        exp=int(min(now + RESULT_SECONDS, max(until, now + 1))),
        verifier=ear.Verifier("casemate", __version__),
        submods={
            name: SubModule(_STATUS[part.tier], part.vector, policy, part.reasons[:16])
            for name, part in appraisal.parts.items()
        },
        eat_nonce=ear.nonce_claim(nonce),
        sub=device,
        cnf=ear.confirmation(certificate_digest),
        level=appraisal.level,
    )
