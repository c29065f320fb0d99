from __future__ import annotations

import hashlib
import io

from casemate.crypto.secret import Secret
from casemate.formats import delta, frames
from casemate.formats import manifest as fmt
from casemate.formats.payload import PayloadCipher
from casemate.release import delta as planner
from casemate.release.sealing import make_payload
from support import releases

PROGRAM = hashlib.shake_256(b"program").digest(90_000)
OLD = {"bin/app": PROGRAM, "lib/same": b"stays" * 4000, "lib/x-1.0.so": PROGRAM[::-1]}
NEW = {
    "bin/app": PROGRAM[:40_000] + b"new code" + PROGRAM[40_000:],
    "data/noise": hashlib.shake_256(b"noise").digest(1_200_000),
    "lib/same": b"stays" * 4000,
    "lib/x-1.1.so": b"v1.1" + PROGRAM[::-1],
    "note": b"",
}
RELEASE, BASE = "a" * 32, "b" * 32


def sources(files: dict[str, bytes]) -> list[planner.Source]:
    return [
        planner.describe(path, lambda at, size, data=data: data[at : at + size], len(data))
        for path, data in sorted(files.items())
    ]


def opened(payload: fmt.Payload, chunks: dict[str, bytes], key: Secret) -> bytes:
    cipher, last = PayloadCipher(key, RELEASE, payload.id), len(payload.chunks) - 1
    return b"".join(
        bytes(cipher.open(index, chunks[ref.sha256], last=index == last)) for index, ref in enumerate(payload.chunks)
    )


def unpack(plan: fmt.Plan, stream: bytes, wanted: dict[str, bytes], old: dict[str, bytes]) -> dict[str, bytes]:
    made, at = {}, 0
    for step in plan.steps:
        part, at = stream[at : at + step.bytes], at + step.bytes
        base = old[step.base.path] if step.base else b""
        if step.codec == "zstd":
            part = b"".join(frames.decompress_stream([part], len(wanted[step.path])))
        elif step.codec == "same":
            part = base
        elif step.codec == "delta":
            new, was = (delta.Identity(len(data), hashlib.sha256(data).digest()) for data in (wanted[step.path], base))
            read = lambda offset, size, base=base: base[offset : offset + size]  # noqa: E731
            part = b"".join(map(bytes, delta.apply([part], read, base=was, new=new)))
        made[step.path] = part
    assert at == len(stream)
    return made


def test_a_tree_is_published_whole_and_as_its_difference_and_comes_back():
    chunks: dict[str, bytes] = {}
    new, old = sources(NEW), sources(OLD)
    with Secret(releases.KEY) as key:
        rows = [
            make_payload(key, RELEASE, new, spool=io.BytesIO, put=chunks.__setitem__),
            make_payload(
                key, RELEASE, new, spool=io.BytesIO, put=chunks.__setitem__,
                base_release=BASE, bases=planner.pair(new, old),
            ),
        ]  # fmt: skip
        for payload, plan in rows:
            assert unpack(plan, opened(payload, chunks, key), NEW, OLD) == NEW
        codecs = {step.path: step.codec for step in rows[1][1].steps}
        assert codecs == {
            "bin/app": "delta", "data/noise": "raw", "lib/same": "same", "lib/x-1.1.so": "delta", "note": "raw",
        }  # fmt: skip
        files = tuple(fmt.File(row.path, row.size, row.sha256) for row in new)
        part = fmt.SealedPart(1, RELEASE, "app", "shop", "1.1", 1, files, tuple(plan for _, plan in rows))
        ref, sealed = fmt.seal_part(part, key)
        payloads = tuple(payload for payload, _ in rows)
        manifest = fmt.Manifest(1, RELEASE, "app", "shop", "1.1", 1, fmt.Requires(), ref, payloads)
        assert fmt.open_sealed(fmt.parse(fmt.encode(manifest)).claimed, sealed, key) == part


def test_every_chunk_is_kept_under_its_own_digest():
    chunks: dict[str, bytes] = {}
    with Secret(releases.KEY) as key:
        payload, _ = make_payload(key, RELEASE, sources(NEW), spool=io.BytesIO, put=chunks.__setitem__)
    assert {ref.sha256 for ref in payload.chunks} == set(chunks)
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in chunks.items())
    assert payload.transfer_bytes == sum(map(len, chunks.values()))
