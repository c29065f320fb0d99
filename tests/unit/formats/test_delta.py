from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats import delta as fmt
from casemate.formats import frames
from casemate.formats.delta import Identity

OLD = bytes((index * index * 31 + index) % 256 for index in range(5000))


def identity(data: bytes) -> Identity:
    return Identity(len(data), hashlib.sha256(data).digest())


def delta(*operations: bytes, old: bytes = OLD, new: bytes, end: bool = True) -> bytes:
    return fmt.header(identity(old), identity(new)) + b"".join(operations) + (fmt.end() if end else b"")


def run(raw: bytes, *, old: bytes = OLD, new: bytes, step: int = 700) -> bytes:
    pieces = (raw[at : at + step] for at in range(0, len(raw), step))
    made = fmt.apply(
        pieces, lambda offset, length: old[offset : offset + length], base=identity(old), new=identity(new)
    )
    return b"".join(made)


def refused(raw: bytes, **kwargs) -> str:
    with pytest.raises(UntrustedDataError) as caught:
        run(raw, **kwargs)
    return caught.value.check


def op(code: int, layout: str, *fields: int) -> bytes:
    return bytes([code]) + struct.pack(layout, *fields)


SPARSE = bytearray(OLD[1000:2000])
for _at in (0, 1, 17, 18, 600, 985, 989, 990, 999):  # the first, the last, neighbours, a far one, the odd end
    SPARSE[_at] ^= 0x11
SPARSE = bytes(SPARSE)
NEW = (
    OLD[100:2000]
    + bytes(range(200))
    + bytes(value ^ 1 for value in OLD[300:700])
    + SPARSE
    + OLD[4000:4500]
    + b"tail" * 50
)
OPERATIONS = (
    fmt.copy(100, 1900),
    fmt.literal(bytes(range(200)), 3),
    fmt.xor(OLD[300:700], bytes(value ^ 1 for value in OLD[300:700]), 300, 18, 3),
    fmt.xor(OLD[1000:2000], SPARSE, 1000, 18, 3),
    fmt.patch(OLD[3900:4600], 3900, OLD[4000:4500], 3),
    fmt.literal(b"tail" * 50, 3),
)


def sparse(gaps: bytes, changes: bytes) -> bytes:
    """Return a SPARSE operation over 100 bytes."""
    stored = frames.compress(gaps, 3), frames.compress(changes, 3)
    return op(6, ">QIHIIII", 0, 100, 18, len(gaps), len(changes), *map(len, stored)) + b"".join(stored)


@pytest.mark.parametrize("step", [1, 7, 700, 100_000])
def test_every_operation_makes_what_it_says(step):
    assert run(delta(*OPERATIONS, new=NEW), new=NEW, step=step) == NEW


def test_an_empty_file_is_made_of_nothing():
    assert run(delta(new=b""), new=b"") == b""


@given(st.binary(min_size=1, max_size=400), st.binary(min_size=1, max_size=400), st.integers(1, 40), st.data())
def test_any_mix_of_operations_comes_back(old, noise, row, data):
    made, operations = b"", []
    for _ in range(data.draw(st.integers(0, 6))):
        offset = data.draw(st.integers(0, len(old) - 1))
        length = data.draw(st.integers(1, len(old) - offset))
        part = old[offset : offset + length]
        kind = data.draw(st.sampled_from(["copy", "literal", "xor", *(["patch"] if length >= 8 else [])]))
        if kind == "copy":
            operations.append(fmt.copy(offset, length))
        elif kind == "literal":
            operations.append(fmt.literal(part := noise, 1))
        elif kind == "xor":
            few = data.draw(st.booleans())
            changes = (0 if at % 9 else noise[0] for at in range(length)) if few else noise * length
            part = bytes(a ^ (b & 255) for a, b in zip(part, changes, strict=False))
            operations.append(fmt.xor(old[offset : offset + length], part, offset, row, 1))
        else:
            operations.append(fmt.patch(part, offset, part := noise + part, 1))
        made += part
    assert run(delta(*operations, old=old, new=made), old=old, new=made) == made


@pytest.mark.parametrize(
    ("raw", "check"),
    [
        (b"", "delta-truncated"),
        (b"\0" * 200, "delta-magic"),
        (delta(*OPERATIONS, new=NEW)[:8] + b"\0\2" + delta(*OPERATIONS, new=NEW)[10:], "delta-version"),
        (delta(*OPERATIONS, new=NEW)[:12] + b"\1" + delta(*OPERATIONS, new=NEW)[13:], "delta-version"),
        (delta(*OPERATIONS, new=NEW, old=OLD[1:]), "delta-base"),
        (delta(*OPERATIONS, new=NEW + b"!"), "delta-target"),
        (delta(*OPERATIONS, new=NEW, end=False), "delta-truncated"),
        (delta(*OPERATIONS, new=NEW) + b"\0", "delta-trailing-data"),
        (delta(*OPERATIONS[:-1], new=NEW), "delta-result"),
        (delta(fmt.copy(0, len(NEW)), new=NEW), "delta-result"),
        (delta(op(9, ""), new=NEW), "delta-operation"),
        (delta(fmt.copy(0, len(NEW) + 1), new=NEW), "delta-length"),
        (delta(fmt.copy(0, 0), new=NEW), "delta-length"),
        (delta(fmt.copy(0, 2**63), new=NEW), "delta-length"),
        (delta(fmt.copy(len(OLD) - 1, 2), new=NEW), "delta-range"),
        (delta(fmt.copy(2**64 - 1, 2), new=NEW), "delta-range"),
        (delta(op(2, ">II", 2**32 - 1, 5), new=NEW), "delta-length"),
        (delta(op(2, ">II", 5, 2**32 - 1), new=NEW), "delta-length"),
        (delta(op(2, ">II", 5, 0), new=NEW), "delta-length"),
        (delta(op(2, ">II", 5, 3) + b"abc", new=NEW), "delta-compression"),
        (delta(op(2, ">II", 5, len(frames.compress(b"abcdef", 3))) + frames.compress(b"abcdef", 3), new=NEW),
         "delta-compression"),
        (delta(op(2, ">II", 7, len(frames.compress(b"abcdef", 3))) + frames.compress(b"abcdef", 3), new=NEW),
         "delta-compression"),
        (delta(op(2, ">II", 6, 1 + len(frames.compress(b"abcdef", 3))) + frames.compress(b"abcdef", 3) + b"!", new=NEW),
         "delta-compression"),
        (delta(op(3, ">I", 2**32 - 1), new=NEW), "delta-length"),
        (delta(op(3, ">I", 100), new=NEW, end=False), "delta-truncated"),
        (delta(op(4, ">QIHI", 0, 10, 0, 10), new=NEW), "delta-length"),
        (delta(op(4, ">QIHI", 0, 10, 2000, 10), new=NEW), "delta-length"),
        (delta(op(4, ">QIHI", len(OLD), 10, 2, 10), new=NEW), "delta-range"),
        (delta(op(6, ">QIHIIII", 0, 100, 0, 1, 1, 9, 9), new=NEW), "delta-length"),
        (delta(op(6, ">QIHIIII", 0, 100, 18, 0, 0, 9, 9), new=NEW), "delta-length"),
        (delta(op(6, ">QIHIIII", 0, 100, 18, 26, 26, 9, 9), new=NEW), "delta-length"),
        (delta(op(6, ">QIHIIII", 0, 100, 18, 2**32 - 1, 1, 9, 9), new=NEW), "delta-length"),
        (delta(op(6, ">QIHIIII", 0, 100, 18, 1, 2, 9, 9), new=NEW), "delta-length"),
        (delta(sparse(b"\x64", b"1"), new=NEW), "delta-length"),  # a change beyond the last byte
        (delta(sparse(b"\1\xff", b"11"), new=NEW), "delta-length"),
        (delta(sparse(b"\xff", b"1"), new=NEW), "delta-length"),
        (delta(op(5, ">QIII", 0, 0, 10, 10), new=NEW), "delta-length"),
        (delta(op(5, ">QIII", 0, 2**32 - 1, 10, 10), new=NEW), "delta-length"),
        (delta(op(5, ">QIII", len(OLD) - 7, 8, 10, 10), new=NEW), "delta-range"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_refused(raw, check):
    assert refused(raw, new=NEW) == check


def test_the_wrong_base_is_refused_before_anything_is_read():
    def read(offset: int, length: int) -> bytes:
        raise AssertionError("the old file was read")

    other = OLD[:-1] + b"?"
    with pytest.raises(UntrustedDataError, match="another file") as caught:
        fmt.apply([delta(*OPERATIONS, new=NEW)], read, base=identity(other), new=identity(NEW))
    assert caught.value.check == "delta-base"


def test_a_base_that_changed_under_the_delta_never_passes():
    changed = OLD[:500] + b"\0" + OLD[501:]
    made = fmt.apply(
        [delta(*OPERATIONS, new=NEW)], lambda at, size: changed[at : at + size], base=identity(OLD), new=identity(NEW)
    )
    with pytest.raises(UntrustedDataError) as caught:
        b"".join(made)
    assert caught.value.check == "delta-result"


def test_a_bomb_stops_at_the_length_that_was_said():
    bomb = frames.compress(bytes(64 << 20), 3)
    assert refused(delta(op(2, ">II", 2000, len(bomb)) + bomb, new=NEW), new=NEW) == "delta-compression"


VALID = delta(*OPERATIONS, new=NEW)


@given(st.integers(0, len(VALID) - 1), st.integers(1, 255))
def test_no_flipped_byte_passes_for_the_new_file(at, flip):
    raw = bytearray(VALID)
    raw[at] ^= flip
    try:
        made = run(bytes(raw), new=NEW)
    except UntrustedDataError:
        return
    assert made == NEW  # a bit that means nothing, such as one in a frame's own header


@given(st.integers(0, len(VALID) - 1), st.integers(0, 60), st.binary(max_size=60))
def test_no_splice_passes_for_the_new_file(at, drop, noise):
    raw = VALID[:at] + noise + VALID[at + drop :]
    try:
        made = run(raw, new=NEW)
    except UntrustedDataError:
        return
    assert made == NEW


@given(st.integers(0, len(VALID) - 1))
def test_no_part_of_a_delta_is_a_delta(size):
    with pytest.raises(UntrustedDataError):
        run(VALID[:size], new=NEW)


# --- whole files as one frame ---------------------------------------------------------------------------------------


@given(st.binary(max_size=5000), st.integers(1, 500))
def test_a_compressed_file_comes_back(data, step):
    frame = b"".join(frames.compress_stream([data], 3))
    pieces = (frame[at : at + step] for at in range(0, len(frame), step))
    assert b"".join(frames.decompress_stream(pieces, len(data))) == data


@pytest.mark.parametrize("fault", ["cut", "longer", "shorter", "more", "noise", "window"])
def test_a_damaged_frame_is_refused(fault):
    data = OLD * 3
    frame = b"".join(frames.compress_stream([data], 3))
    if fault == "window":
        options = {frames.zstd.CompressionParameter.window_log: 27}
        compressor = frames.zstd.ZstdCompressor(options=options)
        frame = compressor.compress(data) + compressor.flush()
    raw = {"cut": frame[:-1], "more": frame + b"x", "noise": b"\0" * 50}.get(fault, frame)
    size = {"longer": len(data) - 1, "shorter": len(data) + 1}.get(fault, len(data))
    with pytest.raises(UntrustedDataError) as caught:
        b"".join(frames.decompress_stream([raw[:100], raw[100:]], size))
    assert caught.value.check == "zstd"


def test_a_bomb_of_a_file_stops_at_its_size():
    frame = b"".join(frames.compress_stream([bytes(1 << 20)] * 64, 3))
    made = frames.decompress_stream([frame], 1000)
    with pytest.raises(UntrustedDataError, match="longer"):
        next(made)
