"""What a device and its fleet say to each other over `/device/v1`: JSON, bounded before it is read.

A server refuses a field it does not know; a device ignores one. So servers are updated before devices. Nothing here is
trusted for being well formed: identity comes from the certificate of the connection, assurance from the verifier,
never from a field.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED
from casemate.formats.envelope import DeviceId

MAX_BODY: Final = 1 << 20
"""Bytes of any request body."""
MAX_PACKAGES: Final = 20_000
_RETURN_LABEL: Final = b"casemate.return.v1\0"

Short = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
"""A name of the device's choosing. No control characters: PostgreSQL stores no NUL, and with it would fail the whole
batch that it came in, other devices' words too."""
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
LARGEST: Final = 2**53
"""The largest count anybody may name, and the largest that any sum of them is kept as: a double holds it exactly."""
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Blob = Annotated[bytes, msgspec.Meta(max_length=256 * 1024)]

DeviceState = Literal["ok", "degraded", "quarantined", "wiped"]


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A message from a device."""


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message to a device."""


class Health(_Request, frozen=True):
    """What the last minutes were like. Counts are since the check-in before; nothing of what was said is in them."""

    temperature_c: Annotated[float, msgspec.Meta(ge=-100, le=300)] = 0.0
    memory_used: Count = 0
    load: Annotated[float, msgspec.Meta(ge=0, le=10_000)] = 0.0
    requests: Count = 0
    refusals: Count = 0
    integrity_failures: Count = 0


class CheckIn(_Request, frozen=True):
    """A device says that it lives. `clock` is its own time (seconds since the epoch), to be shown, never believed."""

    state: DeviceState
    agent: Short
    clock: float
    sequence: Count = 0
    """The highest command sequence it has carried out."""
    generation: Short = ""
    inventory: Digest | None = None
    """`Inventory.digest` of what it has installed."""
    health: Health | None = None
    pick: Count = 0
    """The sequence of the pick it follows (`formats.director`); 0: none, or one that ends soon."""


class Delivery(_Answer, frozen=True):
    """A signed command envelope (`formats.envelope`) and the name its acknowledgement is posted under."""

    id: Short
    envelope: Blob


class CheckInAnswer(_Answer, frozen=True):
    """When to come again (seconds; jitter is added already) and what waits."""

    server_time: float
    next_checkin_s: float
    commands: tuple[Delivery, ...] = ()
    inventory_wanted: bool = False
    attest_wanted: bool = False
    pick: Blob | None = None
    """What the director says now, signed (`formats.director`), when the device follows something older."""


class Acknowledgement(_Request, frozen=True):
    """An acknowledgement signed by the device (`formats.envelope`)."""

    acknowledgement: Blob


class GenerationWord(_Request, frozen=True):
    """A device's signed word about a generation (`formats.director`)."""

    word: Blob


class JournalCheckpoint(_Request, frozen=True):
    """A device's log asks to be witnessed: its key (a vkey) and a C2SP `add-checkpoint` request."""

    vkey: Short
    request: Blob


class Item(_Request, frozen=True, order=True):
    """One installed thing: a Debian or Python package, a model, a policy, firmware, a HAT."""

    kind: Literal["dpkg", "python", "engine", "model", "policy", "firmware", "hat", "os"]
    name: Short
    version: Short
    digest: Digest | None = None


class Inventory(_Request, frozen=True):
    """All of a device's items. Devices with the same items share one stored set."""

    items: Annotated[tuple[Item, ...], msgspec.Meta(max_length=MAX_PACKAGES)]


# --- attestation and keys (docs/attestation.md) ---------------------------------------------------------------------

Nonce = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Pcrs = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=23)], ...], msgspec.Meta(max_length=24)]
TpmBytes = Annotated[bytes, msgspec.Meta(max_length=2048)]
CertificateBytes = Annotated[bytes, msgspec.Meta(max_length=8192)]


class Challenge(_Answer, frozen=True):
    """Quote exactly *pcrs* (SHA-256 bank) for *nonce*, once, within *seconds*."""

    nonce: Nonce
    pcrs: Pcrs
    seconds: int


class AttestAnswer(_Answer, frozen=True):
    """What the evidence came to, until *expires* (Unix seconds); *ear* is the signed result."""

    status: Literal["none", "affirming", "warning", "contraindicated"]
    assurance: Literal["L0", "L1", "L2", "L3"]
    expires: float
    ear: str
    reasons: tuple[str, ...] = ()


class KeyQuestion(_Request, frozen=True):
    """A device asks for a model's key; *nonce* is its attester's, for this question alone."""

    nonce: Nonce


class KeyAnswer(_Answer, frozen=True):
    """The key of a model, for one TPM and one question (`formats.lease`).

    *identity* and *encrypted* are for `TPM2_ActivateCredential`; what they hold unwraps *wrapped*, bound to *terms*.
    """

    key: Short
    identity: TpmBytes
    encrypted: TpmBytes
    terms: TpmBytes
    wrapped: TpmBytes
    lease_s: int


class TpmHello(_Request, frozen=True):
    """Step one of joining with a TPM: who it is. *token*: a one-time token, when the fleet does not list this TPM.

    *device*: it is this one, and comes back; *serial* is of the certificate that it has. Then nobody new is made, and
    step two wants `return_proof` in place of the secret.
    """

    ek_public: TpmBytes
    ak_public: TpmBytes
    csr: CertificateBytes
    ek_certificate: CertificateBytes = b""
    token: Annotated[str, msgspec.Meta(max_length=256)] = ""
    device: DeviceId | None = None
    serial: Short = ""


class TpmCredential(_Answer, frozen=True):
    """What only the TPM that has both keys can open."""

    identity: TpmBytes
    encrypted: TpmBytes
    seconds: int


class TpmProof(_Request, frozen=True):
    """Step two: the secret of the credential; of a device that comes back, `return_proof` of it."""

    secret: Nonce


class TpmWelcome(_Answer, frozen=True):
    """The certificate and the authorities above it (DER)."""

    device: Short
    chain: Annotated[tuple[CertificateBytes, ...], msgspec.Meta(max_length=8)]


class ReturnAsk(_Request, frozen=True):
    """A device without a TPM wants to come back: *csr* is signed with the key of its last certificate, *serial*."""

    device: DeviceId
    serial: Short
    csr: CertificateBytes


def return_proof(secret: bytes, csr: bytes) -> bytes:
    """Return what proves that a TPM opened the credential holding *secret*, for the request *csr* (DER) alone.

    The process with the TPM gives out this and never the secret: credentials carry keys of gated models, too, and
    whoever asks it to prove a return must not be able to have those opened.
    """
    return hmac.digest(secret, _RETURN_LABEL + hashlib.sha256(csr).digest(), "sha256")


Message = TypeVar("Message", bound=msgspec.Struct)


def encode(message: msgspec.Struct) -> bytes:
    """Return *message* as JSON."""
    return msgspec.json.encode(message)


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""


def problem(body: bytes) -> str:
    """Return in a line what a server's problem document says, fit to be shown; "" when it is not one."""
    try:
        told = msgspec.json.decode(body[:MAX_BODY], type=_Problem)
    except MALFORMED:
        return ""
    return "".join(char if char.isprintable() else "?" for char in told.title)[:200]


def canonical_inventory(inventory: Inventory) -> bytes:
    """Return the one spelling of *inventory*: items sorted, each once. Its SHA-256 names the set."""
    items = sorted(set(inventory.items), key=lambda item: (item.kind, item.name, item.version, item.digest or ""))
    return msgspec.json.encode(Inventory(tuple(items)))


def parse(body: bytes, kind: type[Message]) -> Message:
    """Read *body* as a message of *kind*.

    Every field has a closed type and requests refuse a field they do not know, so nothing nests deeper than our own
    messages do: a parser never descends into what it was not asked for.

    Raises:
        UntrustedDataError: `body-size` or `body-format`.

    """
    if len(body) > MAX_BODY:
        raise UntrustedDataError(f"a body is at most {MAX_BODY} bytes", check="body-size")
    try:
        return msgspec.json.decode(body, type=kind)
    except MALFORMED as error:
        raise UntrustedDataError(f"not a {kind.__name__} message: {error}", check="body-format") from error
