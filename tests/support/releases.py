"""Releases of our own making: a manifest, its sealed part and its chunks, as a release machine would write them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import msgspec

from casemate.crypto.secret import Secret
from casemate.formats import manifest as fmt
from casemate.formats import payload as sealing
from casemate.formats.gate import Gate
from casemate.formats.manifest import Base, ChunkRef, File, Kind, Manifest, Payload, Plan, Requires, SealedPart, Step

KEY = bytes(range(32))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Made:
    """What `release` made; `chunks` by their digest."""

    manifest: Manifest
    part: SealedPart
    sealed: bytes
    chunks: dict[str, bytes] = field(default_factory=dict)
    key: bytes = KEY

    def stream(self, payload: str) -> bytes:
        return b"".join(self.chunks[chunk.sha256] for chunk in self.manifest.payload(payload).chunks)


def seal_stream(key: Secret, release: str, role: str, base: str, stream: bytes, *, chunks: dict[str, bytes]) -> Payload:
    name = sealing.payload_id(key, release, hashlib.sha256(stream).digest())
    cipher = sealing.PayloadCipher(key, release, name)
    refs = []
    for index, (chunk, last) in enumerate(sealing.cut([stream])):
        sealed = cipher.seal(index, chunk, last=last)
        chunks[digest(sealed)] = sealed
        refs.append(ChunkRef(digest(sealed), len(sealed)))
    return Payload(name, role, base, len(stream), tuple(refs))  # type: ignore[arg-type]


def release(
    plain: bytes,
    *,
    version: str = "2.0.0",
    security_version: int = 2,
    delta: bytes | None = None,
    base: bytes = b"",
    base_release: str = "b" * 32,
    path: str = "model.gguf",
    claimed_digest: str = "",
    kind: Kind = "model",
    gate: Gate | None = None,
) -> Made:
    """Make a one-file release with a full payload and, with *delta*, one against *base*."""
    chunks: dict[str, bytes] = {}
    with Secret(KEY) as key:
        file = File(path, len(plain), claimed_digest or digest(plain))
        name = sealing.release_id(key, kind=kind, name="demo", version=version, files=[(path, file.sha256)])
        payloads = [seal_stream(key, name, "full", "", plain, chunks=chunks)]
        plans = [Plan(payloads[0].id, (Step(path, "raw", len(plain)),))]
        if delta is not None:
            payloads.append(seal_stream(key, name, "delta", base_release, delta, chunks=chunks))
            step = Step(path, "delta", len(delta), Base(path, len(base), digest(base)))
            plans.append(Plan(payloads[1].id, (step,)))
        part = SealedPart(
            1, name, kind, "demo", version, security_version, (file,), tuple(plans), licence="MIT",
            gate=gate or msgspec.UNSET,
        )  # fmt: skip
        ref, sealed = fmt.seal_part(part, key)
    chunks[ref.sha256] = sealed
    manifest = Manifest(1, name, kind, "demo", version, security_version, Requires(), ref, tuple(payloads), gate)
    return Made(manifest, part, sealed, chunks)
