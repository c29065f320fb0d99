"""TPM arithmetic: known answers, and what is refused. Against a TPM itself: tests/system/test_tpm.py."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto import tpm, tpm_policy
from casemate.crypto.ecdsa import EcKey
from casemate.errors import UntrustedDataError

PCRS = {0: bytes(32), 14: b"v" * 32}
COUNTER = b"\0\x0b" + bytes(32)


def test_the_selection_is_the_one_a_tpm_writes():
    assert tpm_policy.selection({0: b"", 7: b"", 14: b""}).hex() == "00000001000b03814000"


def test_the_digest_of_pcrs_follows_their_order_not_the_mappings():
    assert tpm_policy.pcr_digest({14: b"b" * 32, 0: b"a" * 32}) == hashlib.sha256(b"a" * 32 + b"b" * 32).digest()


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 62))
def test_each_limit_has_a_policy_of_its_own(one, other):
    policies = {tpm_policy.approved_policy(PCRS, COUNTER, limit) for limit in (one, other)}
    assert len(policies) == len({one, other})


def test_each_state_and_each_counter_has_a_policy_of_its_own():
    base = tpm_policy.approved_policy(PCRS, COUNTER, 1)
    assert tpm_policy.approved_policy({**PCRS, 14: bytes(32)}, COUNTER, 1) != base
    assert tpm_policy.approved_policy({0: bytes(32)}, COUNTER, 1) != base
    assert tpm_policy.approved_policy(PCRS, COUNTER[:-1] + b"\1", 1) != base


@pytest.mark.parametrize("secret", [b"", bytes(33)])
def test_a_credential_has_a_bounded_secret(secret):
    with pytest.raises(ValueError, match="credential"):
        tpm.make_credential(EcKey.generate().public.key, tpm.SHA256, 128, COUNTER, secret)


def test_one_block_is_all_kdfa_gives():
    with pytest.raises(ValueError, match="one block"):
        tpm.kdfa(tpm.SHA256, bytes(32), b"STORAGE", b"", 512)


def test_a_signature_of_the_wrong_scheme_or_hash_is_none():
    key = EcKey.generate().public.key
    assert not tpm.is_signed_by(key, tpm.RSASSA, tpm.SHA256, (b"x",), b"m")
    assert not tpm.is_signed_by(key, tpm.ECDSA, 0x0004, (b"\1", b"\1"), b"m")
    assert not tpm.is_signed_by(key, tpm.ECDSA, tpm.SHA256, (b"", b""), b"m")


@given(st.binary(max_size=300), st.integers(0, 1 << 32))
def test_odd_rsa_keys_are_refused(modulus, exponent):
    with pytest.raises(UntrustedDataError):
        tpm.rsa_key(modulus, exponent)
