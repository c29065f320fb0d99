"""Leases on gated keys: what a grant binds, and that no clock makes one longer."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError
from casemate.formats import lease
from casemate.formats.keystore import Sealed, key_id
from casemate.formats.lease import KeptLease, LeasedKey, Terms

TRANSPORT, KEY = Secret(b"t" * 32), Secret(b"k" * 32)
NONCE = b"n" * 32
TERMS = Terms(1, "shop", "till-7", "tiny", key_id(KEY), "L2", 3600, NONCE)
RAW, WRAPPED = lease.make_grant(TRANSPORT, KEY, TERMS)


def check_of(raw=RAW, wrapped=WRAPPED, *, model="tiny", nonce=NONCE, transport=TRANSPORT):
    with pytest.raises(UntrustedDataError) as caught:
        lease.open_grant(transport, raw, wrapped, model=model, nonce=nonce)
    return caught.value.check


def test_what_was_granted_is_taken():
    terms, key = lease.open_grant(TRANSPORT, RAW, WRAPPED, model="tiny", nonce=NONCE)
    assert (terms, key.reveal()) == (TERMS, KEY.reveal())


def test_an_answer_to_another_question_or_about_another_model_is_refused():
    assert check_of(nonce=b"m" * 32) == "grant-nonce"
    assert check_of(model="other") == "grant-model"
    assert check_of(transport=Secret(b"x" * 32)) == "grant-seal"


def test_a_key_under_a_wrong_name_is_refused():
    raw, wrapped = lease.make_grant(TRANSPORT, KEY, msgspec.structs.replace(TERMS, key="0" * 16))
    assert check_of(raw, wrapped) == "grant-key"


@given(st.integers(0, len(RAW + WRAPPED) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused(at, flip):
    whole = bytearray(RAW + WRAPPED)
    whole[at] ^= flip
    assert check_of(bytes(whole[: len(RAW)]), bytes(whole[len(RAW) :])).startswith("grant-")


@given(st.binary(max_size=400), st.binary(max_size=80))
def test_what_is_no_grant_is_refused(raw, wrapped):
    assert check_of(raw, wrapped).startswith("grant-")


@given(st.integers(1, 10**6), st.integers(0, 10**9), st.integers(0, 10**12))
def test_no_clock_makes_a_lease_longer(lease_s, passed_ms, wall):
    granted = 10**9
    left = lease.seconds_left(
        until_ms=lease_s * 1000, clock_ms=passed_ms, granted=granted, ends=granted + lease_s, now=wall
    )
    assert 0 <= left <= max(0, lease_s - passed_ms / 1000)
    if not granted - 600 <= wall < granted + lease_s:
        assert left == 0 or wall < granted


def test_what_is_sealed_comes_back_with_its_moments():
    with lease.to_seal(KEY, 5, 9) as whole:
        key, granted, ends = lease.unsealed(whole)
    assert (key.reveal(), granted, ends) == (KEY.reveal(), 5, 9)
    with pytest.raises(UntrustedDataError):
        lease.unsealed(Secret(b"short"))


def test_the_kept_file_is_read_back_and_nothing_else_is():
    kept = KeptLease(1, "shop", "tiny", key_id(KEY), "L2", 1, 2, 3, 4, {7: bytes(32)}, Sealed(b"a", b"b", b"c"))
    assert lease.parse_kept(lease.encode_kept(kept)) == kept
    for raw in (b"", b"{}", b"[", b" " * 10_000, lease.encode_kept(kept)[:-1]):
        with pytest.raises(UntrustedDataError):
            lease.parse_kept(raw)


def test_a_key_on_its_way_arrives_whole_or_not_at_all():
    sent = lease.hand(LeasedKey("shop", "tiny", key_id(KEY), "L2", KEY))
    got = lease.handed(sent)
    assert (got.fleet, got.model, got.min_assurance, got.secret.reveal()) == ("shop", "tiny", "L2", KEY.reveal())
    for raw in (b"", sent[:32], sent[:-1]):
        with pytest.raises(UntrustedDataError):
            lease.handed(raw)
