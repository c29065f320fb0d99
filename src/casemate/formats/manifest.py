"""A release's manifest: what a signed TUF target says about one artefact of one version, and what only devices read.

The public part is a target `<kind>/<name>/<version>/manifest.json`: names, versions, sizes and the addresses of
encrypted chunks. The sealed part is one more encrypted chunk: plain digests, how each file is made from its payload,
signatures and health checks. A mirror learns the first and nothing of the second.

    bytes --parse--> UntrustedManifest --verify (against the signed target)--> VerifiedManifest
    sealed bytes --VerifiedManifest.open_sealed(content key)--> SealedPart

Both are canonical JSON: the bytes are exactly what `encode` makes, so one content has one digest, and no key can stand
there twice. No I/O here; see docs/reference/release-format.md.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, NoReturn, TypeAlias, TypeVar

import msgspec

from casemate.crypto.aead import TAG_BYTES
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED
from casemate.formats.gate import Gate
from casemate.formats.payload import CHUNK_BYTES, SEALED_CHUNK_BYTES, PayloadCipher, payload_id

LIMIT: Final = 1_000_000
SEALED_LIMIT: Final = 4 << 20  # plaintext of the sealed part
PAYLOAD_LIMIT: Final = 16
CHUNK_LIMIT: Final = 1 << 14  # chunks of one payload: what `LIMIT` has room for, and a bit
FILE_LIMIT: Final = 16384
SIZE_LIMIT: Final = 1 << 40

Kind: TypeAlias = Literal["model", "policy", "engine", "app", "os"]
Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
OptionalId = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{32})?\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9](?!.*\.\.)[a-z0-9._-]{0,62}\Z")]
Version = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z](?!.*\.\.)[0-9A-Za-z._+-]{0,62}\Z")]
SecurityVersion = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=SIZE_LIMIT)]
Label = Annotated[str, msgspec.Meta(max_length=64, pattern=r"\A[\x20-\x7e]*\Z")]
Path = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Immutable, and nothing unknown passes."""


# --- the public part ----------------------------------------------------------------------------------------------


class ChunkRef(_Struct, frozen=True):
    """One encrypted chunk: `chunks/<first 2 hex>/<sha256>`, with its size in bytes."""

    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=TAG_BYTES, le=SEALED_CHUNK_BYTES)]

    @property
    def path(self) -> str:
        """Where it is published."""
        return chunk_path(self.sha256)


class SealedRef(_Struct, frozen=True):
    """The sealed part: one chunk by itself. `id` derives its key."""

    id: Id
    sha256: Sha256
    size: Annotated[int, msgspec.Meta(gt=TAG_BYTES, le=SEALED_LIMIT + TAG_BYTES)]

    @property
    def path(self) -> str:
        """Where it is published."""
        return chunk_path(self.sha256)


class Payload(_Struct, frozen=True):
    """A stream of `bytes` plain bytes that makes the release: alone (`full`), or from `base_release` (`delta`)."""

    id: Id
    role: Literal["full", "delta"]
    base_release: OptionalId
    bytes: Size
    chunks: Annotated[tuple[ChunkRef, ...], msgspec.Meta(min_length=1, max_length=CHUNK_LIMIT)]

    @property
    def transfer_bytes(self) -> int:
        """How many bytes cross the network."""
        return sum(chunk.size for chunk in self.chunks)


class Requires(_Struct, frozen=True, omit_defaults=True):
    """What a device must have; empty means anything."""

    min_agent: Label = ""
    runtime: Label = ""


class Manifest(_Struct, frozen=True, omit_defaults=True):
    """The public part. `gate`: of a model that only a fleet's broker opens; left out when there is none."""

    schema: Literal[1]
    release: Id
    kind: Kind
    name: Name
    version: Version
    security_version: SecurityVersion
    requires: Requires
    sealed: SealedRef
    payloads: Annotated[tuple[Payload, ...], msgspec.Meta(min_length=1, max_length=PAYLOAD_LIMIT)]
    gate: Gate | None = None

    @property
    def target_path(self) -> str:
        """The TUF target this manifest must be."""
        return target_path(self.kind, self.name, self.version)

    @property
    def full(self) -> Payload:
        """The payload that needs no base: always there."""
        return next(payload for payload in self.payloads if payload.role == "full")

    def delta_from(self, release: str) -> Payload | None:
        """Return the delta against *release* (an id), when there is one."""
        return next((payload for payload in self.payloads if release and payload.base_release == release), None)

    def payload(self, wanted: str) -> Payload:
        """Return the payload with the id *wanted*.

        Raises:
            UntrustedDataError: `manifest-payload`: there is none.

        """
        found = next((payload for payload in self.payloads if payload.id == wanted), None)
        if found is None:
            _refuse("manifest-payload", "it has no such payload")
        return found


class UntrustedManifest(msgspec.Struct, frozen=True):
    """Well-formed and bounded; `claimed` is what it says about itself."""

    claimed: Manifest
    size: int
    sha256: str


class VerifiedManifest(msgspec.Struct, frozen=True):
    """It is byte for byte the target that signed metadata names. `sha256` is its digest."""

    manifest: Manifest
    sha256: str


def chunk_path(sha256: str) -> str:
    """Return where a chunk is published."""
    return f"chunks/{sha256[:2]}/{sha256}"


def target_path(kind: str, name: str, version: str) -> str:
    """Return the TUF target of a release."""
    return f"{kind}/{name}/{version}/manifest.json"


def parse(raw: bytes) -> UntrustedManifest:
    """Check the form and every bound of a manifest.

    Raises:
        UntrustedDataError: `manifest-size`, `manifest-form`, `manifest-gate` or `manifest-payload`.

    """
    if len(raw) > LIMIT:
        _refuse("manifest-size", f"it is larger than {LIMIT} bytes")
    manifest = _decode(_manifest_decoder, raw, "manifest")
    if manifest.gate and manifest.kind != "model":
        _refuse("manifest-gate", "only a model can be gated")
    _check_payloads(manifest)
    return UntrustedManifest(manifest, len(raw), hashlib.sha256(raw).hexdigest())


def verify(untrusted: UntrustedManifest, *, path: str, size: int, sha256: str) -> VerifiedManifest:
    """Take *untrusted* for what signed metadata says the target *path* is: *size* bytes with the digest *sha256*.

    Raises:
        UntrustedDataError: `manifest-digest` other bytes, `manifest-target` the manifest of something else.

    """
    if (untrusted.size, untrusted.sha256) != (size, sha256):
        _refuse("manifest-digest", "it is not the file that the metadata names")
    if untrusted.claimed.target_path != path:
        _refuse("manifest-target", f"it belongs at {untrusted.claimed.target_path}")
    return VerifiedManifest(untrusted.claimed, sha256)


def encode(manifest: Manifest) -> bytes:
    """Make the file. What `parse` refuses is never made.

    Raises:
        UntrustedDataError: as `parse`.

    """
    raw = msgspec.json.encode(manifest)
    parse(raw)
    return raw


def _check_payloads(manifest: Manifest) -> None:
    """Check that there is one full payload, at most one delta per base, and that sizes add up."""
    payloads = manifest.payloads
    bases = [payload.base_release for payload in payloads]
    ids = {payload.id for payload in payloads} | {manifest.sealed.id}
    if bases.count("") != 1 or len(set(bases)) != len(bases) or len(ids) != len(payloads) + 1:
        _refuse("manifest-payload", "its payloads are not one full and one delta per base")
    for payload in payloads:
        if (payload.role == "full") != (payload.base_release == "") or payload.base_release == manifest.release:
            _refuse("manifest-payload", "a payload's role does not fit its base")
        *others, last = (chunk.size for chunk in payload.chunks)
        if any(size != SEALED_CHUNK_BYTES for size in others) or (others and last == TAG_BYTES):
            _refuse("manifest-payload", "a payload is not cut into whole chunks")
        if len(others) * CHUNK_BYTES + last - TAG_BYTES != payload.bytes:
            _refuse("manifest-payload", "the chunks of a payload do not add up to its size")


# --- the sealed part ----------------------------------------------------------------------------------------------


class File(_Struct, frozen=True):
    """One plain file of the release. `path` is relative, with `/`."""

    path: Path
    size: Size
    sha256: Sha256


class Base(_Struct, frozen=True):
    """The plain file of the base release that a delta is against."""

    path: Path
    size: Size
    sha256: Sha256


class Step(_Struct, frozen=True, omit_defaults=True):
    """How the next file is made from the next `bytes` bytes of the payload.

    `raw`: they are the file. `zstd`: one zstd frame of it. `delta`: as `formats.delta`, against `base`.
    `same`: no bytes; the file is `base`, unchanged.
    """

    path: Path
    codec: Literal["raw", "zstd", "delta", "same"]
    bytes: Size
    base: Base | None = None


class Plan(_Struct, frozen=True):
    """What the payload `payload` holds: one step per file of the release, in the order of its files."""

    payload: Id
    steps: Annotated[tuple[Step, ...], msgspec.Meta(min_length=1, max_length=FILE_LIMIT)]


class Smoke(_Struct, frozen=True):
    """A prompt the new generation must answer; `expect` is a regular expression searched for in the answer."""

    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    expect: Annotated[str, msgspec.Meta(max_length=512)]


class Bounds(_Struct, frozen=True, omit_defaults=True):
    """What the health gate measures against; 0 means not bounded."""

    first_token_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)] = 0
    memory_mib: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0


class SealedPart(_Struct, frozen=True):
    """What only devices with the content key read. The first fields must repeat the public part's."""

    schema: Literal[1]
    release: Id
    kind: Kind
    name: Name
    version: Version
    security_version: SecurityVersion
    files: Annotated[tuple[File, ...], msgspec.Meta(min_length=1, max_length=FILE_LIMIT)]
    plans: Annotated[tuple[Plan, ...], msgspec.Meta(min_length=1, max_length=PAYLOAD_LIMIT)]
    licence: Label = ""
    smoke: Annotated[tuple[Smoke, ...], msgspec.Meta(max_length=64)] = ()
    bounds: Bounds = Bounds()
    signature: Annotated[str, msgspec.Meta(max_length=1 << 20)] = ""  # a formats.signature_log.SignedRelease, as JSON
    mlbom_sha256: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    provenance_sha256: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    gate: Gate | msgspec.UnsetType = msgspec.UNSET  # left out when there is none

    def plan(self, payload: str) -> Plan:
        """Return the plan of a payload (by id).

        Raises:
            UntrustedDataError: `sealed-plan`: there is none.

        """
        found = next((plan for plan in self.plans if plan.payload == payload), None)
        if found is None:
            _refuse("sealed-plan", "it does not say how to use a payload")
        return found


def seal_part(part: SealedPart, content_key: Secret) -> tuple[SealedRef, bytes]:
    """Encrypt the sealed part; returns what the public part says of it, and the chunk to publish.

    Raises:
        UntrustedDataError: as `open_sealed` would.

    """
    raw = msgspec.json.encode(part)
    if len(raw) > SEALED_LIMIT:
        _refuse("sealed-size", f"it is larger than {SEALED_LIMIT >> 20} MiB")
    _check_part(_decode(_sealed_decoder, raw, "sealed"))
    name = payload_id(content_key, part.release, hashlib.sha256(raw).digest())
    sealed = PayloadCipher(content_key, part.release, name).seal(0, raw, last=True)
    return SealedRef(name, hashlib.sha256(sealed).hexdigest(), len(sealed)), sealed


def open_sealed(manifest: Manifest, sealed: bytes, content_key: Secret) -> SealedPart:
    """Open the sealed part and hold it against the public one.

    Raises:
        UntrustedDataError: `sealed-digest`, `payload-chunk`, `sealed-form`, `sealed-plan`, `sealed-gate` or
            `sealed-mismatch`.

    """
    ref = manifest.sealed
    if len(sealed) != ref.size or hashlib.sha256(sealed).hexdigest() != ref.sha256:
        _refuse("sealed-digest", "its sealed part is not the one it names")
    raw = bytes(PayloadCipher(content_key, manifest.release, ref.id).open(0, sealed, last=True))
    part = _decode(_sealed_decoder, raw, "sealed")
    _check_part(part)
    public = [(payload.id, payload.bytes, payload.role) for payload in manifest.payloads]
    if (part.gate or None) != manifest.gate:  # whoever could change the public part cannot open this one
        _refuse("sealed-gate", "its sealed part has another gate")
    if _identity(part) != _identity(manifest) or [plan.payload for plan in part.plans] != [row[0] for row in public]:
        _refuse("sealed-mismatch", "its sealed part belongs to another release")
    for plan, (_, size, role) in zip(part.plans, public, strict=True):
        if sum(step.bytes for step in plan.steps) != size:
            _refuse("sealed-plan", "the steps do not use the whole payload")
        if role == "full" and any(step.base for step in plan.steps):
            _refuse("sealed-plan", "a full payload needs a base")
    return part


def _identity(part: Manifest | SealedPart) -> tuple[str, str, str, str, int]:
    return part.release, part.kind, part.name, part.version, part.security_version


def _check_part(part: SealedPart) -> None:
    paths = [file.path for file in part.files]
    if not is_tree(paths):
        _refuse("sealed-path", "a file's path is unsafe, twice there or out of order")
    for plan in part.plans:
        if [step.path for step in plan.steps] != paths:
            _refuse("sealed-plan", "a plan does not make every file")
        for step, file in zip(plan.steps, part.files, strict=True):
            _check_step(step, file)


def _check_step(step: Step, file: File) -> None:
    if (step.codec in {"delta", "same"}) != (step.base is not None):
        _refuse("sealed-plan", "a step's base does not fit its codec")
    if step.base is not None and not _is_safe(step.base.path):
        _refuse("sealed-path", "the path of a base is unsafe")
    if step.codec == "raw" and step.bytes != file.size:
        _refuse("sealed-plan", "a raw step is not as long as its file")
    if step.codec == "same" and (
        step.bytes or step.base is None or (step.base.size, step.base.sha256) != (file.size, file.sha256)
    ):
        _refuse("sealed-plan", "an unchanged file is not its base")


def is_tree(paths: list[str]) -> bool:
    """Say whether *paths* are sorted, each once, safe to unpack, and none is a directory of another."""
    return paths == sorted(set(paths)) and all(_is_safe(path) for path in paths) and not _nested(paths)


def _is_safe(path: str) -> bool:
    """Say whether *path* stays inside the directory it is unpacked to, and prints as it is."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and not any(part in {"", ".", ".."} for part in parts)


def _nested(paths: list[str]) -> bool:
    """Say whether one path is a directory of another."""
    known = set(paths)
    return any(path[:at] in known for path in paths for at, char in enumerate(path) if char == "/")


# --- both ---------------------------------------------------------------------------------------------------------

_manifest_decoder: Final = msgspec.json.Decoder(Manifest)
_sealed_decoder: Final = msgspec.json.Decoder(SealedPart)
_T = TypeVar("_T")


def _decode(decoder: msgspec.json.Decoder[_T], raw: bytes, check: str) -> _T:
    try:
        value = decoder.decode(raw)
    except MALFORMED as error:
        raise UntrustedDataError(
            f"the manifest was refused: it is not well-formed: {error}", check=f"{check}-form"
        ) from error
    if msgspec.json.encode(value) != raw:
        _refuse(f"{check}-form", "it is not in its canonical form")
    return value


def _refuse(check: str, what: str) -> NoReturn:
    raise UntrustedDataError(
        f"the manifest was refused: {what}", check=check, hint="fetch it again; nothing of it was used"
    )
