"""Derivation: known answers, separation of labels, bounded costs."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from casemate.crypto import kdf
from casemate.crypto.secret import Secret

KEY = Secret(bytes(range(32)))
CHEAP = kdf.Argon2Cost(memory_kib=8 * 1024, passes=1, lanes=1)


def test_derive_is_hkdf_with_a_label():
    """RFC 5869 spelled out with the standard library's HMAC."""
    prk = hmac.new(bytes(32), bytes(range(32)), hashlib.sha256).digest()
    expected = hmac.new(prk, b"casemate/1/test\0context\1", hashlib.sha256).digest()
    assert bytes(kdf.derive(KEY, "test", b"context").view()) == expected


def test_labels_contexts_and_keys_separate():
    made = [
        kdf.derive(KEY, "a"), kdf.derive(KEY, "b"), kdf.derive(KEY, "a", b"c"), kdf.derive(KEY, "a\0c"),
        kdf.derive(Secret(bytes(32)), "a"),
    ]  # fmt: skip
    assert len({bytes(key.view()) for key in made}) == len(made)


def test_stretch_is_argon2id():
    """RFC 9106's function with our cost: an independent encoding of the same parameters agrees."""
    expected = Argon2id(salt=b"s" * 16, length=32, iterations=1, lanes=1, memory_cost=8192).derive(b"passphrase")
    assert bytes(kdf.stretch(Secret(b"passphrase"), b"s" * 16, CHEAP).view()) == expected


def test_mac_parts_cannot_be_shifted():
    assert kdf.mac(KEY, b"ab", b"c") != kdf.mac(KEY, b"a", b"bc")
    assert kdf.same(kdf.mac(KEY, b"x"), kdf.mac(KEY, b"x"))


@pytest.mark.parametrize("bad", [(8191, 1, 1), ((1 << 20) + 1, 1, 1), (8192, 0, 1), (8192, 17, 1), (8192, 1, 9)])
def test_costs_have_bounds_both_ways(bad):
    with pytest.raises(ValueError, match="out of bounds"):
        kdf.Argon2Cost(*bad)


def test_the_default_cost_is_above_the_recommended_minimum():
    """RFC 9106, second recommended option: 64 MiB, 3 passes, 4 lanes."""
    assert kdf.DEFAULT_COST.memory_kib >= 64 * 1024
    assert kdf.DEFAULT_COST.passes >= 3
