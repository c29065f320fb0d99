"""What a fleet's director tells one device to run, and the device's signed word about what came of it. Pure.

The director is online and may be stolen; the release keys are not. So a pick does not say what is good, it says which
of the things that release keys signed this device shall take now: it names the signed set (a TUF target) by channel,
digest and length, and a device that finds anything else in its repository takes nothing. The idea is Uptane's director
repository (IEEE-ISTO 6100, "Uptane Standard" 2.1, section 5.4.4), in the envelopes that commands use.

A device takes a pick when, in this order:

    envelope-form, envelope-signature   by the director's key of the charter
    pick-form        well-formed, canonical, lives at most `MAX_LIFE`, and has what its action needs
    pick-fleet, pick-device             of our fleet, for this device
    pick-sequence    not older than the one it has
    pick-expired     not past `expires` at `earliest` (see `formats.envelope`)
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import envelope
from casemate.formats.decoding import decode_canonical, encode_canonical
from casemate.formats.envelope import DeviceId, Digest, FleetId, Line, Moment, Sequence
from casemate.formats.manifest import Name

PICK_TYPE: Final = "application/vnd.casemate.pick.v1+json"
WORD_TYPE: Final = "application/vnd.casemate.word.v1+json"
MAX_LIFE: Final = 14 * 86_400
_MINUTES: Final = 24 * 60

Minute = Annotated[int, msgspec.Meta(ge=0, lt=_MINUTES)]
Action = Literal["take", "keep", "back"]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what is signed."""


class Choice(_Body, frozen=True):
    """A signed set: what `channels/<channel>.json` must be, byte for byte, and what its members come to."""

    channel: Name
    generation: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    content: Digest
    sha256: Digest
    length: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Pick(_Body, frozen=True):
    """What one device shall do. *take*: fetch and try `choice`. *keep*: nothing. *back*: leave `choice`, if it runs.

    `window`: minutes of the day (UTC) in which it may change what it runs. `rate`: bytes per second, 0: as its owner
    says, and never more than that.
    """

    schema: Literal[1]
    fleet: FleetId
    device: DeviceId
    sequence: Sequence
    action: Action
    issued: Moment
    expires: Moment
    choice: Choice | None = None
    window: tuple[Minute, Minute] | None = None
    rate: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0


class Word(_Body, frozen=True):
    """What came of a generation on a device: its own word, to be held against what is seen of it."""

    schema: Literal[1]
    fleet: FleetId
    device: DeviceId
    content: Digest
    outcome: Literal["good", "failed"]
    time: Moment
    why: Line = ""
    tries: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    hardware: Annotated[str, msgspec.Meta(max_length=100, pattern=r"\A[\x20-\x7e]*\Z")] = ""
    first_token_ms: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    memory_mib: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None


class VerifiedPick(msgspec.Struct, frozen=True):
    """A pick of this device's director; *raw* is its envelope."""

    pick: Pick
    raw: bytes


class VerifiedWord(msgspec.Struct, frozen=True):
    """A word that the device it names has signed."""

    word: Word


_picks: Final = msgspec.json.Decoder(Pick)
_words: Final = msgspec.json.Decoder(Word)


def sign_pick(pick: Pick, key: SigningKey) -> bytes:
    """Return the envelope of *pick*, signed by the director's key."""
    return envelope.seal(encode_canonical(pick), PICK_TYPE, key)


def verify_pick(raw: bytes, *, public: bytes, fleet: str, device: str, after: int, earliest: float) -> VerifiedPick:
    """Decide whether this device follows *raw*: *after* is the sequence of the pick it has.

    Raises:
        UntrustedDataError: the first check of the table above that fails.

    """
    found = envelope.parse(raw, PICK_TYPE)
    envelope.require_signature(found, PICK_TYPE, public)
    pick = _read_pick(found.payload)
    if pick.fleet != fleet:
        raise UntrustedDataError("a pick of another fleet", check="pick-fleet")
    if pick.device != device:
        raise UntrustedDataError("a pick for another device", check="pick-device")
    if pick.sequence < after:
        raise UntrustedDataError(f"pick {pick.sequence} came after pick {after}", check="pick-sequence")
    if pick.expires < earliest:
        raise UntrustedDataError(f"pick {pick.sequence} has expired", check="pick-expired")
    return VerifiedPick(pick, raw)


def _read_pick(payload: bytes) -> Pick:
    pick = decode_canonical(payload, _picks, "pick", "pick-form")
    if not 0 < pick.expires - pick.issued <= MAX_LIFE:
        raise UntrustedDataError("the pick lives too long, or not at all", check="pick-form")
    if (pick.choice is None) != (pick.action == "keep"):
        raise UntrustedDataError("the pick names too much, or nothing", check="pick-form")
    return pick


def encode_word(word: Word) -> bytes:
    """Return the payload that the device signs."""
    return encode_canonical(word)


def sign_word(payload: bytes, key: EcKey) -> bytes:
    """Return the envelope of a word, signed by the device's key."""
    return envelope.seal(payload, WORD_TYPE, key)


def verify_word(raw: bytes, *, public: EcPublic, fleet: str, device: str) -> VerifiedWord:
    """Check the word of *device*, whose certificate holds *public*.

    Raises:
        UntrustedDataError: `envelope-*`, `word-form`, or `word-device` it is another's.

    """
    found = envelope.parse(raw, WORD_TYPE)
    envelope.require_signature(found, WORD_TYPE, public)
    word = decode_canonical(found.payload, _words, "word", "word-form")
    if (word.fleet, word.device) != (fleet, device):
        raise UntrustedDataError("the word of another device", check="word-device")
    return VerifiedWord(word)
