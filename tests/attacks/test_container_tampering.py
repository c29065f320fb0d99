"""A thief changes a container on the disk: flips bits, swaps, cuts, splices, edits the key slots or the labels.

Every such container is refused, and no byte of a bad chunk is released. The controls use the same cipher without its
tags, and the same slot area without its MAC: there the changed bytes come through.
"""

from __future__ import annotations

import hashlib
import os

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import assume, given
from hypothesis import strategies as st

from casemate.crypto import kdf
from casemate.crypto.aead import TagMismatch
from casemate.crypto.secret import Secret
from casemate.device import containers
from casemate.errors import UntrustedDataError
from casemate.formats import container as fmt
from support import containers as sample

KEY = Secret(hashlib.sha256(b"data key").digest())
PLAIN = hashlib.shake_128(b"weights").digest(2 * sample.CHUNK + 700)
WHOLE = sample.make(PLAIN, KEY)
OTHER = sample.make(PLAIN, Secret(hashlib.sha256(b"other key").digest()))
SAME_KEY = sample.make(PLAIN, KEY)  # never happens in the product: a key is used for one file


def refused(data: bytes) -> str:
    with pytest.raises(UntrustedDataError) as error:
        sample.read(data, KEY)
    return error.value.check


def read_without_tags(data: bytes) -> bytes:
    """Decrypt as counter mode alone does: what AES-GCM would be without its tag."""
    header = fmt.parse_header(data)
    key = kdf.derive(KEY, "container-chunks", header.digest).reveal()
    out = b""
    for index in range(header.chunks):
        span = header.chunk(index)
        nonce = header.nonce_prefix + index.to_bytes(4, "big") + bytes([span.last])
        cipher = Cipher(algorithms.AES(key), modes.CTR(nonce + b"\0\0\0\2")).decryptor()
        out += cipher.update(data[span.offset : span.offset + span.plain_size])
    return out


def flip(data: bytes, at: int, bits: int = 1) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def test_control_the_untouched_container_opens():
    assert sample.read(WHOLE, KEY) == PLAIN == read_without_tags(WHOLE)


def test_control_without_tags_a_flipped_bit_comes_through():
    changed = read_without_tags(flip(WHOLE, fmt.HEAD_BYTES + 5))
    assert changed != PLAIN
    assert len(changed) == len(PLAIN)


def test_control_without_the_mac_changed_labels_come_through():
    forged = WHOLE.replace(b"Apache-2.0", b"Mine-9.9.9")
    assert fmt.parse(forged[: fmt.HEAD_BYTES], len(forged)).claimed.licence == "Mine-9.9.9"
    assert refused(forged) == "container-mac"


def test_every_flipped_byte_of_header_and_slots_is_refused():
    checks = {refused(flip(WHOLE, at, 1 << at % 8)) for at in range(fmt.HEAD_BYTES)}
    assert all(check.startswith("container-") for check in checks)
    assert "container-mac" in checks  # the last word on what has a form


def test_every_flipped_byte_of_every_chunk_is_refused():
    assert {refused(flip(WHOLE, at, 1 << at % 8)) for at in range(fmt.HEAD_BYTES, len(WHOLE))} == {"container-chunk"}


@given(st.data())
def test_any_few_changes_anywhere_are_refused(data):
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 5))):
        changed[data.draw(st.integers(0, len(WHOLE) - 1))] ^= data.draw(st.integers(1, 255))
    assume(changed != WHOLE)
    assert refused(bytes(changed)).startswith("container-")


@given(st.integers(0, len(WHOLE) - 1))
def test_any_truncation_is_refused(length):
    assert refused(WHOLE[:length]).startswith("container-")


@given(st.binary(min_size=1, max_size=100))
def test_any_extension_is_refused(more):
    assert refused(WHOLE + more) == "container-trailing-data"


def test_swapped_duplicated_and_dropped_chunks_are_refused():
    first, second, last = (WHOLE[sample.chunk_of(WHOLE, n)] for n in range(3))
    head = WHOLE[: fmt.HEAD_BYTES]
    assert refused(head + second + first + last) == "container-chunk"
    assert refused(head + first + first + last) == "container-chunk"
    assert refused(head + first + last) == "container-truncated"
    assert refused(head + first + second) == "container-truncated"


def test_a_shorter_file_with_a_header_to_match_is_refused():
    """Cutting at a chunk border and correcting the size: the header digest and the last-chunk flag both object."""
    header = fmt.parse_header(WHOLE)
    shorter = bytearray(WHOLE[: fmt.HEAD_BYTES + sample.CHUNK + 16])
    shorter[45:53] = sample.CHUNK.to_bytes(8, "big")
    assert refused(bytes(shorter)) == "container-mac"
    lying = fmt.verify(fmt.parse(WHOLE[: fmt.HEAD_BYTES], len(WHOLE)), KEY)
    out = memoryview(bytearray(sample.CHUNK))
    sealed = memoryview(WHOLE)[sample.chunk_of(WHOLE, 0)]
    lying.stream.open_into(0, sealed, out, last=False)
    with pytest.raises(TagMismatch):
        lying.stream.open_into(0, sealed, out, last=True)
    assert header.chunks == 3


@pytest.mark.parametrize("donor", [OTHER, SAME_KEY], ids=["another file", "another file under the same key"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_chunk_of_another_file_is_refused(donor, index):
    """Even under one key: the header digest is every chunk's associated data."""
    place = sample.chunk_of(WHOLE, index)
    assert refused(WHOLE[: place.start] + donor[place] + WHOLE[place.stop :]) == "container-chunk"


@pytest.mark.parametrize("donor", [OTHER, SAME_KEY], ids=["another file", "another file under the same key"])
def test_the_slot_area_of_another_file_is_refused(donor):
    spliced = WHOLE[: fmt.HEADER_BYTES] + donor[fmt.HEADER_BYTES : fmt.HEAD_BYTES] + WHOLE[fmt.HEAD_BYTES :]
    assert refused(spliced) == "container-mac"


def test_the_header_of_another_file_is_refused():
    assert refused(SAME_KEY[: fmt.HEADER_BYTES] + WHOLE[fmt.HEADER_BYTES :]) == "container-mac"


def test_a_higher_security_version_cannot_be_claimed():
    forged = bytearray(WHOLE)
    forged[41:45] = (7).to_bytes(4, "big")
    assert fmt.parse_header(bytes(forged)).security_version == 7
    assert refused(bytes(forged)) == "container-mac"


def test_a_slot_cannot_be_added():
    body = msgspec.to_builtins(fmt.parse(WHOLE[: fmt.HEAD_BYTES], len(WHOLE)))
    area = {"slots": [*body["slots"], body["slots"][0]], "labels": body["claimed"]}
    raw = msgspec.json.encode(area)
    forged = (len(raw).to_bytes(4, "big") + raw).ljust(fmt.AREA_BYTES - 32, b"\0") + os.urandom(32)
    assert refused(WHOLE[: fmt.HEADER_BYTES] + forged + WHOLE[fmt.HEAD_BYTES :]) == "container-mac"


def test_an_oversized_header_is_refused_before_it_is_read():
    lying = bytearray(WHOLE)
    lying[10:12] = b"\xff\xff"
    assert refused(bytes(lying)) == "container-header-size"
    lying = bytearray(WHOLE)
    lying[128:132] = b"\xff\xff\xff\xff"
    assert refused(bytes(lying)) == "container-slots"


def test_no_byte_of_a_bad_chunk_is_released(tmp_path):
    """Through the vault's own reader: chunks before the bad one were seen, the bad one never."""
    path = tmp_path / "x.cmodel"
    path.write_bytes(flip(WHOLE, sample.chunk_of(WHOLE, 1).start + 9))
    with containers.open_container(path) as opened:
        chunks = containers.open_chunks(opened.fd, fmt.verify(opened.container, KEY))
        _, _, first = next(chunks)
        assert bytes(first) == PLAIN[: sample.CHUNK]
        with pytest.raises(UntrustedDataError):
            next(chunks)
        assert bytes(first) == bytes(sample.CHUNK)  # and the buffer that saw it is zero again
