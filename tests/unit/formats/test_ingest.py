"""Batches on the bus: what was sealed comes back as it was, anything else is refused."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats.ingest import MAX_BATCH, ROWS, Batch, open_batch, seal

KEY = b"k" * 32
text = st.text(max_size=128)
number = st.floats(allow_nan=False, allow_infinity=False)
count = st.integers(0, 2**53)
seen = st.tuples(text, number, text, text, text, number, count)
health = st.tuples(text, count, count, number, count, number, count, count, count)


@given(st.lists(seen, max_size=5), st.lists(health, max_size=5))
def test_what_was_sealed_comes_back(one, two):
    batch = Batch(uuid.UUID(int=7).hex, one, two)
    assert open_batch(seal(batch, KEY), KEY) == batch


@given(st.data())
def test_whatever_is_changed_is_refused(data):
    sealed = bytearray(seal(Batch(uuid.UUID(int=7).hex, [("d", 1.0, "ok", "a", "g", 0.0, 1)], []), KEY))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UntrustedDataError) as caught:
        open_batch(bytes(sealed), KEY)
    assert caught.value.check == "bus-seal"


@given(st.binary(max_size=200))
def test_noise_with_the_right_seal_is_refused_too(noise):
    import hashlib  # noqa: PLC0415
    import hmac  # noqa: PLC0415

    with pytest.raises(UntrustedDataError):
        open_batch(hmac.new(KEY, noise, hashlib.sha256).digest() + noise, KEY)


def test_bounds():
    rows = [("d" * 36, 1.0, "ok", "a" * 128, "g" * 128, 0.0, 2**53)] * ROWS
    health = [("d" * 36, 2**40, 1, 1.0, 2**53, 1.0, 1, 1, 1)] * ROWS
    whole = seal(Batch(uuid.uuid4().hex, rows, health), KEY)
    assert len(whole) <= MAX_BATCH
    for batch in (Batch("x", [], []), Batch(uuid.uuid4().hex, [*rows, rows[0]], [])):
        with pytest.raises(UntrustedDataError):
            open_batch(seal(batch, KEY), KEY)
    with pytest.raises(UntrustedDataError, match="size"):
        open_batch(b"x" * (MAX_BATCH + 1), KEY)
