"""Sealing to a public key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto import hpke
from casemate.crypto.aead import TagMismatch

PRIVATE, PUBLIC = hpke.generate()


def test_only_the_private_key_opens_it():
    sealed = hpke.seal(PUBLIC, b"purpose", b"context", b"message")
    assert hpke.open(PRIVATE, b"purpose", b"context", sealed) == b"message"
    other, _ = hpke.generate()
    with pytest.raises(TagMismatch):
        hpke.open(other, b"purpose", b"context", sealed)


@pytest.mark.parametrize(
    ("info", "aad"), [(b"Purpose", b"context"), (b"purpose", b"Context"), (b"purposec", b"ontext")]
)
def test_it_opens_only_for_its_purpose_and_context(info, aad):
    sealed = hpke.seal(PUBLIC, b"purpose", b"context", b"message")
    with pytest.raises(TagMismatch):
        hpke.open(PRIVATE, info, aad, sealed)


@given(st.binary(max_size=64), st.data())
def test_a_changed_message_does_not_open(message, data):
    sealed = bytearray(hpke.seal(PUBLIC, b"i", b"a", message))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TagMismatch):
        hpke.open(PRIVATE, b"i", b"a", bytes(sealed))


@given(st.binary(max_size=100))
def test_garbage_does_not_open(garbage):
    with pytest.raises(TagMismatch):
        hpke.open(PRIVATE, b"i", b"a", garbage)


def test_a_public_key_of_small_order_is_refused():
    with pytest.raises(ValueError, match="shared key"):
        hpke.seal(bytes(32), b"", b"", b"x")
