"""The `.cmodel` container: one encrypted file, with the keys that open it beside the ciphertext, wrapped.

    0       magic, version, core length, core      fixed for life; its SHA-256 is every chunk's associated data
    128     slot area                              wrapped data keys and labels, under a MAC; re-writable
    16384   chunk 0, chunk 1, ... last chunk       plaintext of `chunk_size` bytes (the last may be shorter) + tag

Keys: a fresh 256-bit data key per file; from it one key for the chunks and one for the MAC, both bound to the header
digest. The MAC commits to the data key, so a container has exactly one meaning whatever key is tried.

Reading goes through types: bytes -> `UntrustedContainer` (well-formed and bounded, nothing proven) -> `verify` with the
data key -> `VerifiedContainer` (header and labels proven, chunks open one by one). This module does no I/O; see
docs/reference/container-format.md for every field and docs/adr/0002-container-format.md for the reasons.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import Annotated, Final, Literal, NoReturn

import msgspec

from casemate.crypto import kdf
from casemate.crypto.aead import MAX_CHUNKS, PREFIX_BYTES, TAG_BYTES, Algorithm, Stream, TagMismatch
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED
from casemate.formats.gguf import GgufFacts

MAGIC: Final = b"\x89CMODEL\n"  # not text, and broken by anything that "repairs" line ends
VERSION: Final = 1
HEAD_BYTES: Final = 16384  # header and slot area: where the chunks begin
CHUNK_BYTES: Final = 1 << 20
SMALLEST_CHUNK: Final = 1 << 12
LARGEST_CHUNK: Final = 1 << 22
LARGEST_PLAIN: Final = 1 << 40
SLOT_LIMIT: Final = 8

_PRELUDE: Final = struct.Struct(">8sHH")  # magic, version, bytes of core
_CORE: Final = struct.Struct(
    ">16s7sBBIIQ75x"
)  # file id, nonce prefix, kind, algorithm, chunk size, security version, plain size
HEADER_BYTES: Final = _PRELUDE.size + _CORE.size
AREA_BYTES: Final = HEAD_BYTES - HEADER_BYTES
_AREA_LENGTH: Final = struct.Struct(">I")
_BODY_LIMIT: Final = AREA_BYTES - _AREA_LENGTH.size - kdf.MAC_BYTES


class Kind(IntEnum):
    """What the plaintext is."""

    GGUF = 1


class Header(msgspec.Struct, frozen=True):
    """The fixed core. `raw` is its exact bytes, `digest` their SHA-256."""

    file_id: bytes
    nonce_prefix: bytes
    kind: Kind
    algorithm: Algorithm
    chunk_size: int
    security_version: int
    plain_size: int
    raw: bytes
    digest: bytes

    @property
    def chunks(self) -> int:
        """How many chunks there are, at least one."""
        return -(-self.plain_size // self.chunk_size)

    @property
    def file_size(self) -> int:
        """How many bytes the whole container has."""
        return HEAD_BYTES + self.plain_size + self.chunks * TAG_BYTES

    def chunk(self, index: int) -> Span:
        """Return where chunk *index* lies."""
        start = index * self.chunk_size
        size = min(self.chunk_size, self.plain_size - start)
        return Span(HEAD_BYTES + start + index * TAG_BYTES, size + TAG_BYTES, start, size, index == self.chunks - 1)


class Span(msgspec.Struct, frozen=True):
    """One chunk: its place in the container, its place in the plaintext, and whether it is the last."""

    offset: int
    sealed_size: int
    plain_offset: int
    plain_size: int
    last: bool


# --- slots: ways to the data key -----------------------------------------------------------------------------------

Wrapped = Annotated[bytes, msgspec.Meta(min_length=16, max_length=256)]


class HomeSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="home"):
    """Wrapped by the key-encryption key of a home; `key` names it (8 bytes in hex)."""

    key: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    wrapped: Wrapped


class PassphraseSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="passphrase"):
    """Wrapped by a stretched passphrase: exports only, never a container in a home."""

    salt: Annotated[bytes, msgspec.Meta(min_length=kdf.SALT_BYTES, max_length=kdf.SALT_BYTES)]
    cost: kdf.Argon2Cost
    wrapped: Wrapped


class RecipientSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="recipient"):
    """Sealed (HPKE) to the owner key of another home: exports only."""

    public: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    wrapped: Wrapped


class BrokerSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="broker"):
    """Wrapped by the gated key *key* of *model*, which the broker of *fleet* gives to devices of *min_assurance*.

    It is a container's only slot: no passphrase, file or home opens such a container.
    """

    fleet: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-zA-Z._-]{1,64}\Z")]
    model: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,62}\Z")]
    key: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    min_assurance: Literal["L2", "L3"]
    wrapped: Wrapped


Slot = HomeSlot | PassphraseSlot | RecipientSlot | BrokerSlot


class Labels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person sees about a model. Proven by the MAC only: before `verify` they are claims."""

    name: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,62}\Z")]
    digest: Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]  # of the whole plaintext
    licence: Annotated[str, msgspec.Meta(max_length=64, pattern=r"\A[\x20-\x7e]*\Z")]
    added: int  # seconds since the Unix epoch
    facts: GgufFacts


class SlotArea(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The re-writable part."""

    slots: Annotated[tuple[Slot, ...], msgspec.Meta(min_length=1, max_length=SLOT_LIMIT)]
    labels: Labels


class UntrustedContainer(msgspec.Struct, frozen=True):
    """Well-formed and bounded. `claimed` is what it says about itself."""

    header: Header
    slots: tuple[Slot, ...]
    claimed: Labels
    area: bytes

    @property
    def gate(self) -> BrokerSlot | None:
        """The slot of a gated container; None for one that this device's own keystore opens."""
        return gate_of(self.slots)


class VerifiedContainer(msgspec.Struct, frozen=True):
    """Header, labels and slots are what the holder of the data key wrote; chunks prove themselves when opened."""

    header: Header
    slots: tuple[Slot, ...]
    labels: Labels
    stream: Stream


def _refuse(check: str, what: str) -> NoReturn:
    raise UntrustedDataError(
        f"the container was refused: {what}",
        check=check,
        hint="it is damaged or was changed: `casemate model rm` it and add the model again from its source",
    )


# --- reading --------------------------------------------------------------------------------------------------------


def parse_header(raw: bytes) -> Header:
    """Check the fixed core (the first `HEADER_BYTES` of a file).

    Raises:
        UntrustedDataError: `container-magic`, `container-version`, `container-header` or `container-header-size`.

    """
    if len(raw) < HEADER_BYTES:
        _refuse("container-truncated", "it ends inside its header")
    magic, version, core_bytes = _PRELUDE.unpack_from(raw)
    if magic != MAGIC:
        _refuse("container-magic", "it is not a container")
    if version != VERSION:
        _refuse("container-version", f"format version {version} is not known to this casemate")
    if core_bytes != _CORE.size:
        _refuse("container-header-size", f"its header claims {core_bytes} bytes, not {_CORE.size}")
    raw = bytes(raw[:HEADER_BYTES])
    file_id, prefix, kind, algorithm, chunk_size, security, plain_size = _CORE.unpack_from(raw, _PRELUDE.size)
    if any(raw[-_RESERVED:]) or kind not in set(Kind) or algorithm not in set(Algorithm):
        _refuse("container-header", "it has a kind, algorithm or reserved field that is not known")
    if not SMALLEST_CHUNK <= chunk_size <= LARGEST_CHUNK or chunk_size & (chunk_size - 1):
        _refuse("container-header", f"its chunk size is {chunk_size}")
    if not 1 <= plain_size <= min(LARGEST_PLAIN, chunk_size * MAX_CHUNKS):
        _refuse("container-header", f"its size is {plain_size}")
    return Header(
        file_id, prefix, Kind(kind), Algorithm(algorithm), chunk_size, security, plain_size,
        raw, hashlib.sha256(raw).digest(),
    )  # fmt: skip


_RESERVED: Final = 75  # zero bytes at the end of the core
_area_decoder: Final = msgspec.json.Decoder(SlotArea)


def parse(head: bytes, file_size: int, *, area: bytes | None = None) -> UntrustedContainer:
    """Check the first `HEAD_BYTES` of a file that has *file_size* bytes. *area* stands in for the file's own slot area.

    Raises:
        UntrustedDataError: `container-...`; nothing was allocated or read on the word of the file.

    """
    header = parse_header(head)
    if file_size != header.file_size:
        check = "container-truncated" if file_size < header.file_size else "container-trailing-data"
        _refuse(check, f"it has {file_size} bytes and should have {header.file_size}")
    own = bytes(head[HEADER_BYTES:HEAD_BYTES]) if area is None else area
    body = _parse_area(own)
    return UntrustedContainer(header, body.slots, body.labels, own)


def _parse_area(area: bytes) -> SlotArea:
    if len(area) != AREA_BYTES:
        _refuse("container-slots", "its slot area has the wrong size")
    (length,) = _AREA_LENGTH.unpack_from(area)
    if not length <= _BODY_LIMIT:
        _refuse("container-slots", f"its slot area claims {length} bytes")
    try:
        found = _area_decoder.decode(memoryview(area)[_AREA_LENGTH.size : _AREA_LENGTH.size + length])
    except MALFORMED as error:
        raise UntrustedDataError(
            "the container was refused: its slot area is not well-formed",
            check="container-slots",
            hint="it is damaged or was changed: `casemate model rm` it and add the model again from its source",
        ) from error
    _require_one_gate(found.slots)
    return found


def gate_of(slots: tuple[Slot, ...]) -> BrokerSlot | None:
    """Return the broker's slot, if there is one."""
    return next((slot for slot in slots if isinstance(slot, BrokerSlot)), None)


def _require_one_gate(slots: tuple[Slot, ...]) -> None:
    """Refuse a way around a broker: whoever has the data key may write a slot, and a gated model has exactly one."""
    if gate_of(slots) and len(slots) != 1:
        _refuse("container-gate", "a gated model has another way in beside its fleet's broker")


def verify(container: UntrustedContainer, data_key: Secret) -> VerifiedContainer:
    """Prove header, slots and labels with the data key.

    Raises:
        UntrustedDataError: `container-mac`: another key, or a changed or foreign header or slot area.

    """
    header = container.header
    if not kdf.same(_mac(data_key, header, container.area[: -kdf.MAC_BYTES]), container.area[-kdf.MAC_BYTES :]):
        _refuse("container-mac", "its header or slot area was changed, or belongs to another file")
    return VerifiedContainer(header, container.slots, container.claimed, _stream(header, data_key))


def open_chunk(container: VerifiedContainer, index: int, sealed: memoryview, out: memoryview) -> None:
    """Verify chunk *index* (its `Span.sealed_size` bytes) and decrypt it into private memory.

    Raises:
        UntrustedDataError: `container-chunk`: *out* must not be used.

    """
    try:
        container.stream.open_into(index, sealed, out, last=index == container.header.chunks - 1)
    except TagMismatch:
        _refuse("container-chunk", f"chunk {index} was changed, moved or cut")


# --- writing --------------------------------------------------------------------------------------------------------


def new_header(
    *, plain_size: int, algorithm: Algorithm, entropy: bytes, chunk_size: int = CHUNK_BYTES, security_version: int = 0
) -> Header:
    """Make the header of a new container; *entropy* is 23 random bytes (file id and nonce prefix)."""
    file_id, prefix = entropy[:16], entropy[16:]
    if len(prefix) != PREFIX_BYTES:
        raise ValueError("a new header needs 23 random bytes")
    core = _CORE.pack(file_id, prefix, Kind.GGUF, algorithm, chunk_size, security_version, plain_size)
    return parse_header(_PRELUDE.pack(MAGIC, VERSION, _CORE.size) + core)


def seal_area(header: Header, area: SlotArea, data_key: Secret) -> bytes:
    """Make the `AREA_BYTES` of a slot area, with its MAC.

    Raises:
        ValueError: the labels and slots do not fit.

    """
    _require_one_gate(area.slots)
    body = msgspec.json.encode(area)
    if len(body) > _BODY_LIMIT:
        raise ValueError("the slot area is full")
    content = (_AREA_LENGTH.pack(len(body)) + body).ljust(AREA_BYTES - kdf.MAC_BYTES, b"\0")
    return content + _mac(data_key, header, content)


def writing_stream(header: Header, data_key: Secret) -> Stream:
    """Return the cipher for the chunks of a container that is being written."""
    return _stream(header, data_key)


def slot_context(header: Header, kind: str) -> bytes:
    """Return what a wrapped data key is bound to: this file and this kind of slot."""
    return b"casemate/1/container-slot\0" + header.digest + kind.encode("ascii")


def _stream(header: Header, data_key: Secret) -> Stream:
    key = kdf.derive(data_key, "container-chunks", header.digest)
    return Stream(header.algorithm, key, header.nonce_prefix, header.digest)


def _mac(data_key: Secret, header: Header, content: bytes) -> bytes:
    with kdf.derive(data_key, "container-slots", header.digest) as key:
        return kdf.mac(key, header.raw, content)
