"""What a device shows to be trusted with a key: its event log, and a TPM's quote over the PCRs the log explains.

A record is measured before the thing it names is used. Two PCRs are ours and start at zero; the split lets a key be
sealed to the software that handles it while models and policies come and go:

    STACK_PCR   agent, sandbox, engine                  what runs
    LOAD_PCR    policy, guard, model, generation        what it was given

A record that the log of this boot holds already is not measured again: what ran since power-on is a set, and a log
stays as short as the set. Generations alone are a sequence: one that is gone back to is measured again, so the last is
the one that serves (`served`). The records are CEL-JSON in spirit (TCG Canonical Event Log 1.0): the content is the
exact text that was hashed.

Whoever owns a device writes its log. So a log may speak for our two PCRs and for no other, and what it says counts only
when its replay is what the TPM signed: `fleet.verifier` decides. Reading decides nothing.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED

STACK_PCR: Final = 14
LOAD_PCR: Final = 13
OWN_PCRS: Final = frozenset({STACK_PCR, LOAD_PCR})
ZERO: Final = bytes(32)
LIMIT: Final = 512 * 1024
LOG_LIMIT: Final = 1024
NONCE_BYTES: Final = 32


class EventKind(StrEnum):
    """What is measured. There is no kind for anything else."""

    AGENT = "agent"
    SANDBOX = "sandbox"
    ENGINE = "engine"
    POLICY = "policy"
    GUARD = "guard"
    MODEL = "model"
    GENERATION = "generation"


STACK: Final = frozenset({EventKind.AGENT, EventKind.SANDBOX, EventKind.ENGINE})

Word = Annotated[str, msgspec.Meta(max_length=128, pattern=r"\A[\x20-\x7e]*\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
PcrIndex = Annotated[int, msgspec.Meta(ge=0, le=23)]
PcrValue = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
PcrValues = Annotated[dict[PcrIndex, PcrValue], msgspec.Meta(max_length=24)]


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """One thing that was about to be used. `digest` is the SHA-256 of it; `version` is for people."""

    kind: EventKind
    name: Word
    version: Word
    digest: Digest


class RecordDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The digest a PCR was extended with."""

    hash_alg: Literal["sha256"]
    digest: Digest


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of the log: `content` is the JSON of an `Event`, in its one spelling."""

    recnum: Annotated[int, msgspec.Meta(ge=0, lt=LOG_LIMIT)]
    pcr: PcrIndex
    digests: Annotated[tuple[RecordDigest, ...], msgspec.Meta(min_length=1, max_length=1)]
    content_type: Literal["casemate.v1"]
    content: Annotated[str, msgspec.Meta(max_length=1024)]


Log = Annotated[tuple[Record, ...], msgspec.Meta(max_length=LOG_LIMIT)]


class UntrustedEvidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer to a challenge. `attest` and `signature` are the TPM's own bytes; `pcrs` is what the device says."""

    schema: Literal[1]
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    attest: Annotated[bytes, msgspec.Meta(max_length=1024)]
    signature: Annotated[bytes, msgspec.Meta(max_length=1024)]
    pcrs: PcrValues
    log: Log


_encoder: Final = msgspec.json.Encoder(order="sorted")
_events: Final = msgspec.json.Decoder(Event)
_evidence: Final = msgspec.json.Decoder(UntrustedEvidence)
_logs: Final = msgspec.json.Decoder(Log)


def pcr_of(kind: EventKind) -> int:
    """Return the PCR that *kind* is measured into."""
    return STACK_PCR if kind in STACK else LOAD_PCR


def record(number: int, event: Event) -> Record:
    """Return the record of *event* as number *number* of a log."""
    content = _encoder.encode(event)
    digest = RecordDigest("sha256", hashlib.sha256(content).hexdigest())
    return Record(number, pcr_of(event.kind), (digest,), "casemate.v1", content.decode("ascii"))


def extended(value: bytes, digest: bytes) -> bytes:
    """Return what a PCR holds after it was extended."""
    return hashlib.sha256(value + digest).digest()


def replay(log: tuple[Record, ...]) -> tuple[tuple[Event, ...], dict[int, bytes]]:
    """Return the events of *log* and the values of our PCRs that they explain.

    Raises:
        UntrustedDataError: `log-order`, `log-pcr` a record for a PCR it may not name, `log-digest` its content is not
            what was hashed, `log-event` its content is not an event of ours.

    """
    events, values = _replayed(log)
    return events, dict(values)


@functools.lru_cache(maxsize=128)
def _replayed(log: tuple[Record, ...]) -> tuple[tuple[Event, ...], tuple[tuple[int, bytes], ...]]:
    """Replay; a device shows the same log until something new runs, and its neighbours show that log too."""
    values = dict.fromkeys(OWN_PCRS, ZERO)
    events: list[Event] = []
    for number, one in enumerate(log):
        if one.recnum != number:
            raise UntrustedDataError("the event log has a gap", check="log-order")
        if one.pcr not in OWN_PCRS:
            raise UntrustedDataError(f"the event log speaks for PCR {one.pcr}", check="log-pcr")
        content = one.content.encode("utf-8")
        digest = hashlib.sha256(content).digest()
        if digest.hex() != one.digests[0].digest:
            raise UntrustedDataError("an event is not what was measured", check="log-digest")
        events.append(_read_event(content, one.pcr))
        values[one.pcr] = extended(values[one.pcr], digest)
    return tuple(events), tuple(values.items())


def served(events: Iterable[Event]) -> str:
    """Return the content digest of the generation that *events* of one log say serves now; empty: they name none."""
    return next((one.digest for one in reversed(tuple(events)) if one.kind is EventKind.GENERATION), "")


@functools.lru_cache(maxsize=8192)
def _read_event(content: bytes, pcr: int) -> Event:
    """Read and check an event; devices of a fleet measure the same things, so most were read before."""
    try:
        event = _events.decode(content)
    except MALFORMED as error:
        raise UntrustedDataError(f"an event is not one of ours: {error}", check="log-event") from error
    if _encoder.encode(event) != content or pcr_of(event.kind) != pcr:
        raise UntrustedDataError("an event is not in its one spelling, or in another PCR", check="log-event")
    return event


def encode(evidence: UntrustedEvidence) -> bytes:
    """Return the message a device posts."""
    return msgspec.json.encode(evidence)


def parse(raw: bytes) -> UntrustedEvidence:
    """Read the message of a device; nothing of it is proven.

    Raises:
        UntrustedDataError: `evidence-form`.

    """
    if len(raw) > LIMIT:
        raise UntrustedDataError("the evidence is too large", check="evidence-form")
    try:
        return _evidence.decode(raw)
    except MALFORMED as error:
        raise UntrustedDataError(f"the evidence is not well-formed: {error}", check="evidence-form") from error


def encode_log(log: tuple[Record, ...]) -> bytes:
    """Return a log as a device keeps it through one boot."""
    return _encoder.encode(log)


def parse_log(raw: bytes) -> tuple[Record, ...]:
    """Read what `encode_log` wrote.

    Raises:
        UntrustedDataError: `log-form`.

    """
    try:
        return _logs.decode(raw) if len(raw) <= LIMIT else _refuse_log()
    except MALFORMED as error:
        raise UntrustedDataError("the event log is damaged", check="log-form", hint="restart the machine") from error


def differing(expected: Mapping[int, bytes], found: Mapping[int, bytes]) -> list[int]:
    """Return the indexes, in order, whose values are not the same on both sides."""
    return sorted(index for index in {*expected, *found} if expected.get(index) != found.get(index))


def _refuse_log() -> tuple[Record, ...]:
    raise UntrustedDataError("the event log is too long", check="log-form", hint="restart the machine")
