"""Wrapping and the chunk stream."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.aead import Algorithm, Stream, TagMismatch, preferred_algorithm, unwrap, wrap
from casemate.crypto.secret import Secret

KEY = Secret(bytes(range(32)))


def test_a_wrapped_key_comes_back_only_for_its_context():
    inner = Secret.random()
    wrapped = wrap(KEY, inner, b"this file")
    assert unwrap(KEY, wrapped, b"this file").matches(inner)
    with pytest.raises(TagMismatch):
        unwrap(KEY, wrapped, b"another file")
    with pytest.raises(TagMismatch):
        unwrap(Secret(bytes(32)), wrapped, b"this file")


def test_wrapping_twice_gives_two_ciphertexts():
    assert wrap(KEY, KEY, b"") != wrap(KEY, KEY, b"")


@given(st.data())
def test_a_changed_wrapped_key_does_not_open(data):
    wrapped = bytearray(wrap(KEY, Secret(b"k" * 32), b"c"))
    wrapped[data.draw(st.integers(0, len(wrapped) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TagMismatch):
        unwrap(KEY, bytes(wrapped), b"c")


@pytest.mark.parametrize("length", [0, 5, 27, 28])
def test_a_wrapped_key_that_is_too_short_does_not_open(length):
    with pytest.raises(TagMismatch):
        unwrap(KEY, bytes(length), b"")


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_chunk_opens_only_at_its_place(algorithm):
    stream = Stream(algorithm, Secret(KEY.view()), b"prefix7", b"header")
    sealed = bytearray(26)
    stream.seal_into(5, memoryview(b"ten bytes!"), memoryview(sealed), last=False)
    out = memoryview(bytearray(10))
    stream.open_into(5, memoryview(sealed), out, last=False)
    assert bytes(out) == b"ten bytes!"
    for index, last in ((4, False), (6, False), (5, True), (5 + (1 << 8), False)):
        with pytest.raises(TagMismatch):
            stream.open_into(index, memoryview(sealed), out, last=last)
    for other in (
        Stream(algorithm, Secret(KEY.view()), b"prefix8", b"header"),
        Stream(algorithm, Secret(KEY.view()), b"prefix7", b"hEader"),
        Stream(algorithm, Secret(bytes(32)), b"prefix7", b"header"),
    ):
        with pytest.raises(TagMismatch):
            other.open_into(5, memoryview(sealed), out, last=False)


@pytest.mark.parametrize("cipher", [AESGCM, ChaCha20Poly1305])
def test_the_library_keeps_no_reference_to_key_bytes_that_are_wiped_later(cipher):
    """A contract with the library: if it ever keys lazily, wiping early would mean encrypting under zeros."""
    key = bytearray(range(32))
    made = cipher(memoryview(key))
    key[:] = bytes(32)
    assert made.encrypt(bytes(12), b"x", b"") == cipher(bytes(range(32))).encrypt(bytes(12), b"x", b"")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu aes sse\n", Algorithm.AES_256_GCM),
        ("processor : 0\nFeatures\t: fp asimd aes pmull sha2\n", Algorithm.AES_256_GCM),
        ("processor : 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n", Algorithm.CHACHA20_POLY1305),  # Raspberry Pi 4
        ("flags : fpu vaes_not_quite\n", Algorithm.CHACHA20_POLY1305),
        ("", Algorithm.CHACHA20_POLY1305),
    ],
)
def test_the_cipher_follows_the_cpu(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert preferred_algorithm(tmp_path / "cpuinfo") is expected


def test_without_proc_the_cipher_is_the_one_that_is_safe_everywhere(tmp_path):
    assert preferred_algorithm(tmp_path / "missing") is Algorithm.CHACHA20_POLY1305
