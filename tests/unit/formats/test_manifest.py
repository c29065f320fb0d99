from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError
from casemate.formats import manifest as fmt
from casemate.formats import payload as sealing
from casemate.formats.manifest import Base, File, Plan, Step
from support import releases

PLAIN = bytes(range(256)) * 5000  # 1.28 MB: two chunks
MADE = releases.release(PLAIN, delta=b"delta", base=b"old")
RAW = fmt.encode(MADE.manifest)


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(UntrustedDataError) as caught:
        call(*args, **kwargs)
    return caught.value.check


def changed(**fields: object) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(MADE.manifest, **fields))


def payload(index: int, **fields: object) -> tuple:
    rows = list(MADE.manifest.payloads)
    rows[index] = msgspec.structs.replace(rows[index], **fields)
    return tuple(rows)


def test_what_is_made_is_read_and_verified_against_the_signed_target():
    untrusted = fmt.parse(RAW)
    path = "model/demo/2.0.0/manifest.json"
    verified = fmt.verify(untrusted, path=path, size=len(RAW), sha256=hashlib.sha256(RAW).hexdigest())
    assert verified.manifest == MADE.manifest
    assert verified.manifest.full.bytes == len(PLAIN)
    assert verified.manifest.delta_from("b" * 32).role == "delta"
    assert verified.manifest.delta_from("c" * 32) is None
    assert verified.manifest.delta_from("") is None
    assert verified.manifest.full.chunks[0].path.startswith("chunks/")


def test_other_bytes_or_another_place_are_not_the_target():
    untrusted, path, digest = fmt.parse(RAW), MADE.manifest.target_path, hashlib.sha256(RAW).hexdigest()
    assert refused(fmt.verify, untrusted, path=path, size=len(RAW), sha256="0" * 64) == "manifest-digest"
    assert refused(fmt.verify, untrusted, path=path, size=1, sha256=digest) == "manifest-digest"
    other = "model/demo/3.0.0/manifest.json"
    assert refused(fmt.verify, untrusted, path=other, size=len(RAW), sha256=digest) == "manifest-target"


@pytest.mark.parametrize(
    ("raw", "check"),
    [
        (b" " * (fmt.LIMIT + 1), "manifest-size"),
        (b"", "manifest-form"),
        (b"\xff{", "manifest-form"),
        (b"[" * 5000, "manifest-form"),
        (RAW + b"\n", "manifest-form"),
        (RAW[:-1] + b',"more":1}', "manifest-form"),
        (b'{"schema":1,' + RAW[1:], "manifest-form"),  # a key twice
        (changed(kind="firmware"), "manifest-form"),
        (changed(name="../up"), "manifest-form"),
        (changed(name="a..b"), "manifest-form"),
        (changed(version="1/2"), "manifest-form"),
        (changed(schema=2), "manifest-form"),
        (changed(security_version=-1), "manifest-form"),
        (changed(security_version=1 << 32), "manifest-form"),
        (changed(payloads=()), "manifest-form"),
        (changed(payloads=MADE.manifest.payloads * 9), "manifest-form"),
        (changed(payloads=MADE.manifest.payloads[:1] * 2), "manifest-payload"),
        (changed(payloads=MADE.manifest.payloads[1:]), "manifest-payload"),
        (changed(payloads=payload(0, bytes=1)), "manifest-payload"),
        (changed(payloads=payload(0, chunks=MADE.manifest.payloads[0].chunks[::-1])), "manifest-payload"),
        (changed(payloads=payload(1, role="full")), "manifest-payload"),
        (changed(payloads=payload(1, base_release=MADE.manifest.release)), "manifest-payload"),
    ],
)
def test_what_breaks_a_rule_is_refused(raw, check):
    assert refused(fmt.parse, raw) == check


@given(st.binary(max_size=200), st.integers(0, len(RAW)), st.integers(0, 40))
def test_any_bytes_are_refused_or_are_a_manifest(noise, at, drop):
    raw = RAW[:at] + noise + RAW[at + drop :]
    try:
        untrusted = fmt.parse(raw)
    except UntrustedDataError:
        return
    assert fmt.encode(untrusted.claimed) == raw


def test_the_sealed_part_opens_with_the_content_key_only():
    with Secret(releases.KEY) as key:
        assert fmt.open_sealed(MADE.manifest, MADE.sealed, key) == MADE.part
    with Secret(bytes(32)) as key:
        assert refused(fmt.open_sealed, MADE.manifest, MADE.sealed, key) == "payload-chunk"


def test_nothing_of_the_sealed_part_shows():
    shown = RAW.decode()
    assert "model.gguf" not in shown
    assert hashlib.sha256(PLAIN).hexdigest() not in shown


def sealed_with(**fields: object):
    """Return a manifest whose sealed part was made by somebody with the key, and its chunk."""
    part = msgspec.structs.replace(MADE.part, **fields)
    raw = msgspec.json.encode(part)
    with Secret(releases.KEY) as key:
        name = sealing.payload_id(key, MADE.manifest.release, hashlib.sha256(raw).digest())
        sealed = sealing.PayloadCipher(key, MADE.manifest.release, name).seal(0, raw, last=True)
    ref = fmt.SealedRef(name, releases.digest(sealed), len(sealed))
    return msgspec.structs.replace(MADE.manifest, sealed=ref), sealed


FILE = MADE.part.files[0]
FULL, DELTA = MADE.part.plans


def files(*paths: str) -> dict[str, object]:
    rows = tuple(File(path, 0, releases.digest(b"")) for path in paths)
    plan = lambda name: Plan(name, tuple(Step(path, "raw", 0) for path in paths))  # noqa: E731
    return {"files": rows, "plans": (plan(FULL.payload), plan(DELTA.payload))}


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"version": "9"}, "sealed-mismatch"),
        ({"security_version": 99}, "sealed-mismatch"),
        ({"plans": (FULL,)}, "sealed-mismatch"),
        ({"plans": (DELTA, FULL)}, "sealed-mismatch"),
        (files("/etc/passwd"), "sealed-path"),
        (files("a/../../b"), "sealed-path"),
        (files("a//b"), "sealed-path"),
        (files("a\\b"), "sealed-path"),
        (files("a\nb"), "sealed-path"),
        (files("a", "a"), "sealed-path"),
        (files("b", "a"), "sealed-path"),
        (files("a", "a/b"), "sealed-path"),
        ({"plans": (Plan(FULL.payload, (Step("other", "raw", 1),)), DELTA)}, "sealed-plan"),
        ({"plans": (Plan(FULL.payload, (Step("model.gguf", "raw", 1),)), DELTA)}, "sealed-plan"),
        ({"plans": (FULL, Plan(DELTA.payload, (Step("model.gguf", "delta", 5),)))}, "sealed-plan"),
        (
            {"plans": (FULL, Plan(DELTA.payload, (Step("model.gguf", "delta", 5, Base("../x", 3, "0" * 64)),)))},
            "sealed-path",
        ),
        (
            {"plans": (FULL, Plan(DELTA.payload, (Step("model.gguf", "delta", 4, Base("x", 3, "0" * 64)),)))},
            "sealed-plan",
        ),
        (
            {"plans": (FULL, Plan(DELTA.payload, (Step("model.gguf", "same", 0, Base("x", 3, "0" * 64)),)))},
            "sealed-plan",
        ),
        ({"smoke": "x"}, "sealed-form"),
    ],
)
def test_a_sealed_part_that_breaks_a_rule_is_refused(fields, check):
    manifest, sealed = sealed_with(**fields)
    with Secret(releases.KEY) as key:
        assert refused(fmt.open_sealed, manifest, sealed, key) == check


def test_a_full_payload_needs_no_base():
    step = Step("model.gguf", "delta", len(PLAIN), Base("x", 3, "0" * 64))
    manifest, sealed = sealed_with(plans=(Plan(FULL.payload, (step,)), DELTA))
    with Secret(releases.KEY) as key:
        assert refused(fmt.open_sealed, manifest, sealed, key) == "sealed-plan"


def test_the_same_input_gives_the_same_bytes():
    again = releases.release(PLAIN, delta=b"delta", base=b"old")
    assert (again.manifest, again.sealed, again.chunks) == (MADE.manifest, MADE.sealed, MADE.chunks)


def test_other_content_of_one_release_never_meets_the_same_key():
    with Secret(releases.KEY) as key:
        one, two = (sealing.payload_id(key, "a" * 32, hashlib.sha256(data).digest()) for data in (b"1", b"2"))
    assert one != two


@pytest.mark.parametrize("size", [0, 1, sealing.CHUNK_BYTES, sealing.CHUNK_BYTES + 1, 2 * sealing.CHUNK_BYTES])
def test_a_stream_is_cut_into_whole_chunks(size):
    data = bytes(size)
    pieces = list(sealing.cut(data[at : at + 70_000] for at in range(0, size, 70_000)))
    assert b"".join(chunk for chunk, _ in pieces) == data
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(chunk) == sealing.CHUNK_BYTES for chunk, _ in pieces[:-1])
    assert len(pieces) == max(1, -(-size // sealing.CHUNK_BYTES))


@pytest.mark.parametrize("fault", ["flip", "short", "moved", "not last", "other payload", "other release"])
def test_a_chunk_opens_only_in_its_place(fault):
    with Secret(releases.KEY) as key:
        cipher = sealing.PayloadCipher(key, "a" * 32, "1" * 32)
        sealed = cipher.seal(0, b"content", last=True)
        assert cipher.open(0, sealed, last=True) == b"content"
        other = {"other payload": ("a" * 32, "2" * 32), "other release": ("b" * 32, "1" * 32)}.get(fault)
        reader = sealing.PayloadCipher(key, *other) if other else cipher
        damaged = {"flip": b"\0" + sealed[1:], "short": sealed[:5]}.get(fault, sealed)
        assert refused(reader.open, int(fault == "moved"), damaged, last=fault != "not last") == "payload-chunk"


def test_the_schema_is_plain_json():
    shown = json.loads(RAW)
    assert list(shown) == [
        "schema", "release", "kind", "name", "version", "security_version", "requires", "sealed", "payloads",
    ]  # fmt: skip
    assert list(shown["payloads"][0]) == ["id", "role", "base_release", "bytes", "chunks"]
