"""The container format: layout, limits, and the types between untrusted and verified."""

from __future__ import annotations

import hashlib
import struct

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto import kdf
from casemate.crypto.aead import Algorithm
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError
from casemate.formats import container as fmt
from support import containers as sample

KEY = Secret(bytes(range(32)))


def refused(data: bytes, size: int | None = None) -> str:
    with pytest.raises(UntrustedDataError) as error:
        fmt.parse(data[: fmt.HEAD_BYTES], len(data) if size is None else size)
    return error.value.check


@given(st.integers(1, 3 * sample.CHUNK + 1), st.sampled_from(Algorithm))
def test_what_was_written_is_read(size, algorithm):
    plain = hashlib.shake_128(size.to_bytes(4, "big")).digest(size)
    assert sample.read(sample.make(plain, KEY, algorithm=algorithm), KEY) == plain


@pytest.mark.parametrize("size", [1, sample.CHUNK - 1, sample.CHUNK, sample.CHUNK + 1, 2 * sample.CHUNK])
def test_sizes_around_a_chunk(size):
    header = fmt.parse(
        sample.make(bytes(size), KEY)[: fmt.HEAD_BYTES], fmt.HEAD_BYTES + size + 16 * -(-size // 4096)
    ).header
    spans = [header.chunk(index) for index in range(header.chunks)]
    assert sum(span.plain_size for span in spans) == size
    assert [span.last for span in spans] == [False] * (len(spans) - 1) + [True]
    assert spans[-1].offset + spans[-1].sealed_size == header.file_size


def test_the_layout_is_the_documented_one():
    """The numbers of docs/reference/container-format.md."""
    assert (fmt.HEADER_BYTES, fmt.AREA_BYTES, fmt.HEAD_BYTES) == (128, 16256, 16384)
    header = fmt.new_header(
        plain_size=0x0102030405, algorithm=Algorithm.AES_256_GCM, entropy=bytes(range(23)), security_version=7
    )
    assert header.raw == (
        b"\x89CMODEL\n" + struct.pack(">HH", 1, 116) + bytes(range(16)) + bytes(range(16, 23)) + b"\1\1"
        + struct.pack(">IIQ", 1 << 20, 7, 0x0102030405) + bytes(75)
    )  # fmt: skip
    assert header.digest == hashlib.sha256(header.raw).digest()


def test_the_chunk_nonce_is_prefix_counter_last_flag():
    """An independent reading of the documented construction opens our chunks."""
    plain = bytes(range(256)) * 20
    data = sample.make(plain, KEY)
    digest = hashlib.sha256(data[:128]).digest()
    info = b"casemate/1/container-chunks\0" + digest
    key = HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(bytes(range(32)))
    prefix = data[28:35]
    first = AESGCM(key).decrypt(prefix + b"\0\0\0\0\0", data[16384 : 16384 + 4112], digest)
    last = AESGCM(key).decrypt(prefix + b"\0\0\0\1\1", data[16384 + 4112 :], digest)
    assert first + last == plain


def test_labels_are_claims_until_the_data_key_proves_them():
    untrusted = fmt.parse(sample.make(b"x", KEY)[: fmt.HEAD_BYTES], fmt.HEAD_BYTES + 17)
    assert untrusted.claimed.name == "tiny"
    assert not hasattr(untrusted, "labels")
    assert fmt.verify(untrusted, KEY).labels == untrusted.claimed
    with pytest.raises(UntrustedDataError) as error:
        fmt.verify(untrusted, Secret(bytes(32)))
    assert error.value.check == "container-mac"


def field(offset: int, form: str, value: int) -> bytes:
    data = bytearray(sample.make(bytes(5000), KEY))
    struct.pack_into(form, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "check"),
    [
        (b"", "container-truncated"),
        (bytes(127), "container-truncated"),
        (field(0, "B", 0), "container-magic"),
        (field(8, ">H", 2), "container-version"),
        (field(10, ">H", 65535), "container-header-size"),
        (field(10, ">H", 0), "container-header-size"),
        (field(35, "B", 9), "container-header"),
        (field(36, "B", 9), "container-header"),
        (field(37, ">I", 0), "container-header"),
        (field(37, ">I", 1 << 31), "container-header"),
        (field(37, ">I", 4097), "container-header"),
        (field(45, ">Q", 0), "container-header"),
        (field(45, ">Q", 2**63), "container-header"),
        (field(127, "B", 1), "container-header"),
        (field(128, ">I", 2**32 - 1), "container-slots"),
        (field(128, ">I", 0), "container-slots"),
        (field(132, "B", 0), "container-slots"),
    ],
)
def test_a_bad_field_is_refused_before_anything_is_allocated(data, check):
    assert refused(data) == check


def test_a_file_of_another_length_is_refused():
    data = sample.make(bytes(5000), KEY)
    assert refused(data, len(data) - 1) == "container-truncated"
    assert refused(data, len(data) + 1) == "container-trailing-data"


@given(st.binary(max_size=400))
def test_random_bytes_never_break_the_parser(data):
    whole = sample.make(bytes(10), KEY)
    for attempt in (data, whole[:10] + data, whole[:128] + data.ljust(fmt.AREA_BYTES, b"\0")):
        with pytest.raises(UntrustedDataError):
            fmt.parse(attempt[: fmt.HEAD_BYTES], fmt.HEAD_BYTES + 26)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=8), lambda x: st.dictionaries(st.text(max_size=8), x)))
def test_random_json_in_the_slot_area_is_refused(body):
    raw = msgspec.json.encode(body)
    whole = sample.make(bytes(10), KEY)
    area = (len(raw).to_bytes(4, "big") + raw).ljust(fmt.AREA_BYTES, b"\0")
    with pytest.raises(UntrustedDataError) as error:
        fmt.parse(whole[:128] + area, len(whole))
    assert error.value.check == "container-slots"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc/passwd"},
        {"name": "Upper"},
        {"name": ""},
        {"digest": "sha256:12"},
        {"digest": "md5:" + "0" * 64},
        {"licence": "a\x1b[2J"},
        {"licence": "x" * 65},
        {"surprise": 1},
    ],
)
def test_labels_out_of_bounds_are_refused(change):
    area = msgspec.to_builtins(fmt.SlotArea(slots=(sample.slot(),), labels=sample.labels(b"x")))
    area["labels"].update(change)
    raw = msgspec.json.encode(area)
    whole = sample.make(bytes(10), KEY)
    forged = (len(raw).to_bytes(4, "big") + raw).ljust(fmt.AREA_BYTES, b"\0")
    with pytest.raises(UntrustedDataError):
        fmt.parse(whole[:128] + forged, len(whole))


@pytest.mark.parametrize("cost", [(1, 3, 4), (2**31, 3, 4), (65536, 0, 4), (65536, 10**6, 4), (65536, 3, 999)])
def test_a_passphrase_slot_cannot_ask_for_a_silly_cost(cost):
    with pytest.raises(ValueError, match="out of bounds"):
        kdf.Argon2Cost(*cost)
    slot = {
        "type": "passphrase",
        "salt": "A" * 22 + "==",
        "cost": dict(zip(("memory_kib", "passes", "lanes"), cost, strict=True)),
        "wrapped": "A" * 80,
    }
    area = {"slots": [slot], "labels": msgspec.to_builtins(sample.labels(b"x"))}
    raw = msgspec.json.encode(area)
    whole = sample.make(bytes(10), KEY)
    forged = (len(raw).to_bytes(4, "big") + raw).ljust(fmt.AREA_BYTES, b"\0")
    with pytest.raises(UntrustedDataError):
        fmt.parse(whole[:128] + forged, len(whole))


def test_rewriting_slots_keeps_every_chunk_valid():
    plain = bytes(range(256)) * 40
    data = sample.make(plain, KEY)
    header = fmt.parse_header(data)
    area = fmt.SlotArea(slots=(sample.slot(b"n"), sample.slot(b"m")), labels=sample.labels(plain))
    changed = data[:128] + fmt.seal_area(header, area, KEY) + data[16384:]
    assert sample.read(changed, KEY) == plain


def test_an_area_that_does_not_fit_is_a_bug_of_the_caller():
    header = fmt.parse_header(sample.make(b"x", KEY))
    slots = tuple(fmt.HomeSlot(key="00" * 8, wrapped=bytes(4000)) for _ in range(4))
    with pytest.raises(ValueError, match="full"):
        fmt.seal_area(header, fmt.SlotArea(slots=slots, labels=sample.labels(b"x")), KEY)
