"""Records open in their own place under their own key, and a key that moved on cannot be wound back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.record import TAG_LENGTH, EpochKey
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError

ROOT = bytes(range(32))


def key(epoch=3):
    return EpochKey(epoch, Secret(ROOT))


@given(st.binary(max_size=500), st.integers(0, 2**64 - 1), st.binary(max_size=50))
def test_a_record_comes_back(plain, index, context):
    sealed = key().seal(index, plain, context)
    assert len(sealed) == len(plain) + TAG_LENGTH
    assert key().open(index, sealed, context) == plain


@pytest.mark.parametrize(
    ("opener", "index", "context", "change"),
    [
        (key(4), 7, b"c", 0),
        (EpochKey(3, Secret(bytes(32))), 7, b"c", 0),
        (key(), 8, b"c", 0),
        (key(), 7, b"d", 0),
        (key(), 7, b"c", 1),
    ],
)
def test_it_opens_nowhere_else(opener, index, context, change):
    sealed = bytearray(key().seal(7, b"plain", b"c"))
    sealed[0] ^= change
    with pytest.raises(UntrustedDataError) as refused:
        opener.open(index, bytes(sealed), context)
    assert refused.value.check == "record-tag"


def test_the_next_key_follows_from_this_one_which_is_wiped():
    first = key()
    second = first.next()
    assert (second.epoch, second.root()) == (4, key().next().root())
    assert second.root() != ROOT
    with pytest.raises(ValueError, match="wiped"):
        first.root()
    with pytest.raises(ValueError, match="wiped"):
        first.next()


def test_fresh_keys_differ():
    assert EpochKey.generate(0).root() != EpochKey.generate(0).root()
    with pytest.raises(ValueError, match="32 bytes"):
        EpochKey(0, Secret(b"short"))
