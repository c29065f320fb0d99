"""Signed commands from a fleet to one device, and the device's signed answers. Pure; the caller brings time and state.

A command is a DSSE envelope over canonical JSON, signed by the fleet's command key, which no TLS listener has: who
takes over a connection, or the listener, can hold commands back and cannot make, change, replay or redirect one. The
device obeys when, in this order:

    envelope-form        one envelope, one signature, within `LIMIT`
    envelope-signature   by the command key pinned at enrolment
    command-form         well-formed, canonical, lives at most `MAX_LIFE`
    command-fleet        of our fleet
    command-device       for this device
    command-sequence     above the last one obeyed (`after`)
    command-expired      not past `expires` at `earliest`
    command-verb         a verb of the closed list

A device has no clock to trust: it may be years off, and a thief sets it. `earliest` is what the caller can prove: the
newest `issued` the fleet signed for it, plus the seconds that passed on a clock that only runs forward, or the server's
own time at this contact when that is later. A clock that is wrong therefore neither revives a command nor kills one;
what was held back for long dies when anything newer arrives, by its sequence if not by its age.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec

from casemate.crypto import signing
from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED, decode_canonical, encode_canonical
from casemate.formats.dsse import decode64, encode64, pae

LIMIT: Final = 8 * 1024
MAX_LIFE: Final = 31 * 86_400
"""Seconds: a fleet signs anew what could not be delivered for longer."""
COMMAND_TYPE: Final = "application/vnd.casemate.command.v1+json"
ANSWER_TYPE: Final = "application/vnd.casemate.answer.v1+json"

FleetId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
DeviceId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
Sequence = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
Moment = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Line = Annotated[str, msgspec.Meta(max_length=200, pattern=r"\A[\x20-\x7e]*\Z")]
Label = Annotated[str, msgspec.Meta(max_length=40, pattern=r"\A[a-z][a-z0-9-]*\Z")]


class Verb(StrEnum):
    """Everything a fleet can order. There is no verb that runs, fetches or opens anything."""

    PING = "ping"
    ATTEST = "attest"
    QUARANTINE = "quarantine"
    RELEASE = "release"
    WIPE = "wipe"


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what is signed."""


class Command(_Body, frozen=True):
    """One order to one device. `sequence` rises by device; `issued` and `expires` are the server's Unix seconds."""

    schema: Literal[1]
    fleet: FleetId
    device: DeviceId
    sequence: Sequence
    verb: Label
    issued: Moment
    expires: Moment
    reason: Line = ""


class Answer(_Body, frozen=True):
    """What a device did about a command. `command` is the SHA-256 of the payload it answers, `facts` what came of it.

    `time` is the device's own clock, for the reader: nothing is decided by it.
    """

    schema: Literal[1]
    fleet: FleetId
    device: DeviceId
    sequence: Sequence
    verb: Label
    command: Digest
    outcome: Literal["done", "refused", "failed"]
    time: Moment
    detail: Line = ""
    facts: Annotated[dict[str, bool], msgspec.Meta(max_length=16)] = {}


class Envelope(msgspec.Struct, frozen=True):
    """An envelope that is well-formed and nothing more: *payload* is not proven."""

    payload: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the payload: how an answer names its command."""
        return hashlib.sha256(self.payload).hexdigest()


class VerifiedCommand(msgspec.Struct, frozen=True):
    """A command this device must obey now."""

    command: Command
    verb: Verb
    digest: str


class RefusedCommandError(UntrustedDataError):
    """A command that our fleet signed for this device and that it will never obey: it is told so, with the reason."""

    def __init__(self, message: str, *, check: str, command: Command, digest: str, hint: str = "") -> None:
        """Keep what an answer needs."""
        super().__init__(message, check=check, hint=hint)
        self.command = command
        self.digest = digest


class VerifiedAnswer(msgspec.Struct, frozen=True):
    """An answer that the device it names has signed."""

    answer: Answer


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sig: str
    keyid: str = ""


class _Dsse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"payload_type": "payloadType"}):
    payload: str
    payload_type: str
    signatures: Annotated[tuple[_Signature, ...], msgspec.Meta(min_length=1, max_length=1)]


_envelopes: Final = msgspec.json.Decoder(_Dsse)
_commands: Final = msgspec.json.Decoder(Command)
_answers: Final = msgspec.json.Decoder(Answer)


# --- envelopes --------------------------------------------------------------------------------------------------------


def seal(payload: bytes, payload_type: str, key: SigningKey | EcKey) -> bytes:
    """Return the DSSE envelope of *payload*, signed by *key*."""
    signature = encode64(key.sign(pae(payload, payload_type)))
    return encode_canonical(_Dsse(encode64(payload), payload_type, (_Signature(signature),)))


def parse(raw: bytes, payload_type: str, limit: int = LIMIT) -> Envelope:
    """Read one envelope of *payload_type*, of at most *limit* bytes.

    Raises:
        UntrustedDataError: `envelope-form`.

    """
    if len(raw) > limit:
        raise UntrustedDataError("the envelope is too large", check="envelope-form")
    try:
        found = _envelopes.decode(raw)
    except MALFORMED as error:
        raise UntrustedDataError(f"not an envelope: {error}", check="envelope-form") from error
    if found.payload_type != payload_type:
        raise UntrustedDataError("an envelope of another kind", check="envelope-form")
    return Envelope(decode64(found.payload, "envelope-form"), decode64(found.signatures[0].sig, "envelope-form"))


def require_signature(envelope: Envelope, payload_type: str, public: bytes | EcPublic) -> None:
    """Check who signed: an Ed25519 key (32 bytes) or an ECDSA one.

    Raises:
        UntrustedDataError: `envelope-signature`.

    """
    message = pae(envelope.payload, payload_type)
    if isinstance(public, EcPublic):
        fits = public.verify(envelope.signature, message)
    else:
        fits = signing.verify(public, envelope.signature, message)
    if not fits:
        raise UntrustedDataError("the envelope is not signed by the key it needs", check="envelope-signature")


# --- commands ---------------------------------------------------------------------------------------------------------


def sign_command(command: Command, key: SigningKey) -> bytes:
    """Return the envelope of *command*, signed by the fleet's command key."""
    return seal(encode_canonical(command), COMMAND_TYPE, key)


def verify_command(
    raw: bytes, *, public: bytes, fleet: str, device: str, after: int, earliest: float
) -> VerifiedCommand:
    """Decide whether this device must obey: *public* is the pinned command key, *after* the last sequence obeyed.

    *earliest* (Unix seconds) is a moment that has certainly been reached.

    Raises:
        UntrustedDataError: the first check of the table above that fails.
        RefusedCommandError: the same, for the last three: its sender is our fleet, and may know.

    """
    envelope = parse(raw, COMMAND_TYPE)
    require_signature(envelope, COMMAND_TYPE, public)
    command = _read_command(envelope.payload)
    if command.fleet != fleet:
        raise UntrustedDataError("a command of another fleet", check="command-fleet")
    if command.device != device:
        raise UntrustedDataError("a command for another device", check="command-device")
    known: dict[str, Any] = {"command": command, "digest": envelope.digest}
    if command.sequence <= after:
        late = f"command {command.sequence} came after command {after}"
        raise RefusedCommandError(late, check="command-sequence", **known)
    if command.expires < earliest:
        raise RefusedCommandError(f"command {command.sequence} has expired", check="command-expired", **known)
    try:
        verb = Verb(command.verb)
    except ValueError:
        strange = f"this device knows no command {command.verb!r}"
        raise RefusedCommandError(strange, check="command-verb", hint="update casemate", **known) from None
    return VerifiedCommand(command, verb, envelope.digest)


def _read_command(payload: bytes) -> Command:
    command = decode_canonical(payload, _commands, "command", "command-form")
    if not 0 < command.expires - command.issued <= MAX_LIFE:
        raise UntrustedDataError("the command lives too long, or not at all", check="command-form")
    return command


# --- answers ----------------------------------------------------------------------------------------------------------


def encode_answer(answer: Answer) -> bytes:
    """Return the payload that the device signs."""
    return encode_canonical(answer)


def sign_answer(payload: bytes, key: EcKey) -> bytes:
    """Return the envelope of an answer, signed by the device's key."""
    return seal(payload, ANSWER_TYPE, key)


def verify_answer(raw: bytes, *, public: EcPublic, device: str, command: bytes) -> VerifiedAnswer:
    """Check an answer of *device*, whose certificate holds *public*, to the envelope *command*.

    Raises:
        UntrustedDataError: `envelope-*`, `answer-form`, or `answer-command` it answers something else.

    """
    envelope = parse(raw, ANSWER_TYPE)
    require_signature(envelope, ANSWER_TYPE, public)
    answer = decode_canonical(envelope.payload, _answers, "answer", "answer-form")
    if answer.device != device or answer.command != parse(command, COMMAND_TYPE).digest:
        raise UntrustedDataError("the answer is to another command", check="answer-command")
    return VerifiedAnswer(answer)
