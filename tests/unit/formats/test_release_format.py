"""docs/reference/release-format.md is enough: a reader written from that page alone, sharing no code with ours."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from casemate.crypto import hpke
from casemate.crypto.secret import Secret
from casemate.formats import delta as codec
from casemate.formats import frames, grant
from casemate.formats import manifest as fmt
from casemate.release import delta as planner
from support import releases, weights

RNG = np.random.default_rng(5)
TENSORS = [weights.blocks(RNG, 1500).tobytes() for _ in range(6)]
NOISY = (np.frombuffer(TENSORS[2], np.uint8) ^ RNG.integers(0, 2, len(TENSORS[2]), np.uint8)).tobytes()
OLD = weights.model(TENSORS)
NEW = weights.model([TENSORS[1], weights.noisy(TENSORS[1], RNG, 0.02), NOISY, *TENSORS[3:]], more=b"n" * 500)
PAGE = Path(__file__).resolve().parents[3] / "docs/reference/release-format.md"


def derive(key: bytes, label: str, context: bytes = b"") -> bytes:
    return HKDF(hashes.SHA256(), 32, None, b"casemate/1/" + label.encode() + b"\0" + context).derive(key)


def mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(len(part).to_bytes(8, "big") + part for part in parts), "sha256")[:16]


def open_chunks(key: bytes, release: str, payload: str, chunks: list[bytes]) -> bytes:
    named = bytes.fromhex(release + payload)
    cipher = AESGCM(derive(key, "release-payload", named))
    associated = hashlib.sha256(b"casemate/1/release-payload\0" + named).digest()
    return b"".join(
        cipher.decrypt(bytes(7) + index.to_bytes(4, "big") + bytes([index == len(chunks) - 1]), chunk, associated)
        for index, chunk in enumerate(chunks)
    )


def apply(delta: bytes, old: bytes) -> tuple[bytes, set[int]]:
    """Apply a delta one byte at a time, and say which operations it had."""
    assert delta[:16] == bytes.fromhex("89434D444C54410A0001000000000000")
    assert delta[16:56] == len(old).to_bytes(8, "big") + hashlib.sha256(old).digest()
    at, out, seen = 96, b"", set()

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(delta[at - size : at], "big")

    def frame(size: int, prefix: bytes = b"") -> bytes:
        nonlocal at
        at += size
        dictionary = frames.zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else None
        return frames.zstd.decompress(delta[at - size : at], zstd_dict=dictionary)

    while (code := number(1)) != 0:
        seen.add(code)
        if code == 1:
            offset, length = number(8), number(8)
            out += old[offset : offset + length]
        elif code == 2:
            number(4)
            out += frame(number(4))
        elif code == 3:
            length = number(4)
            out += delta[at : at + length]
            at += length
        elif code == 5:
            offset, span, _length = number(8), number(4), number(4)
            out += frame(number(4), old[offset : offset + span])
        else:
            offset, length, row = number(8), number(4), number(2)
            planes = frame(number(4)) if code == 4 else sparse(length, number, frame)
            out += unplaned(planes, old[offset : offset + length], row)
    assert at == len(delta)
    assert delta[56:96] == len(out).to_bytes(8, "big") + hashlib.sha256(out).digest()
    return out, seen


def sparse(length: int, number, frame) -> bytes:
    number(4), number(4)
    sizes = number(4), number(4)
    gaps, changes = frame(sizes[0]), iter(frame(sizes[1]))
    planes, place = bytearray(length), -1
    for gap in gaps:
        place += 255 if gap == 255 else gap + 1
        if gap != 255:
            planes[place] = next(changes)
    return bytes(planes)


def unplaned(planes: bytes, old: bytes, row: int) -> bytes:
    rows, out = len(old) // row, bytearray(old)
    for index, change in enumerate(planes):
        place = index % rows * row + index // rows if index < rows * row else index
        out[place] ^= change
    return bytes(out)


def test_a_delta_is_applied_from_the_page_alone():
    source = lambda data: planner.describe("m", lambda at, size: data[at : at + size], len(data))  # noqa: E731
    made, seen = apply(b"".join(planner.make_delta(source(OLD), source(NEW))), OLD)
    assert made == NEW
    assert seen >= {1, 4, 5, 6}
    new = b"literal" * 9 + b"raw"
    new_id, old_id = (codec.Identity(len(data), hashlib.sha256(data).digest()) for data in (new, OLD))
    parts = codec.header(old_id, new_id) + codec.literal(new[:-3], 3) + codec.literal(b"raw", 3) + codec.end()
    assert apply(parts, OLD) == (new, {2, 3})


def test_a_release_is_opened_from_the_page_alone():
    made = releases.release(b"content" * 300_000, delta=b"d", base=OLD)
    public = json.loads(fmt.encode(made.manifest))
    sealed = made.chunks[public["sealed"]["sha256"]]
    part = json.loads(open_chunks(made.key, public["release"], public["sealed"]["id"], [sealed]))
    full = public["payloads"][0]
    chunks = [made.chunks[chunk["sha256"]] for chunk in full["chunks"]]
    plain = open_chunks(made.key, public["release"], full["id"], chunks)
    assert hashlib.sha256(plain).hexdigest() == part["files"][0]["sha256"]
    named = mac(
        derive(made.key, "release-payload-id"), bytes.fromhex(public["release"]), hashlib.sha256(plain).digest()
    )
    assert full["id"] == named.hex()
    listed = f"{part['files'][0]['sha256']} {part['files'][0]['path']}\n".encode()
    assert public["release"] == mac(derive(made.key, "release-id"), b"model", b"demo", b"2.0.0", listed).hex()


def test_a_grant_is_opened_from_the_page_alone():
    private, public = hpke.generate()
    release = bytes(range(16))
    with private, Secret(releases.KEY) as key:
        said = json.loads(grant.make(key, release.hex(), public))
        purpose, context = b"casemate/1/release-grant", release + public
        info = b"".join(len(part).to_bytes(4, "big") + part for part in (purpose, context))
        opened = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).decrypt(
            base64.b64decode(said["sealed"]), X25519PrivateKey.from_private_bytes(private.reveal()), info
        )
    assert opened == releases.KEY
    assert said["recipient"] == hashlib.sha256(public).hexdigest()[:32]


@pytest.mark.parametrize("struct", [fmt.Manifest, fmt.Payload, fmt.SealedPart, fmt.Step, fmt.Requires, fmt.Bounds])
def test_every_field_is_on_the_page(struct):
    page = PAGE.read_text(encoding="utf-8")
    assert not [name for name in struct.__struct_fields__ if not re.search(rf'[`"]{name}["`]', page)]
