"""Tokens, charters and bundles."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.ecdsa import EcKey
from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import enrolment, envelope
from casemate.formats.enrolment import Bundle, Charter
from casemate.formats.tlog import VerifierKey

ROOT = EcKey.generate()
WITNESS = VerifierKey("witness.example", SigningKey.generate().public)
CHARTER = Charter(1, "ab" * 16, SigningKey.generate().public, str(WITNESS), 1_790_000_000)


def test_a_token_pins_the_root():
    token = enrolment.parse_token(enrolment.make_token(bytes(range(32)), b"a certificate") + "\n")
    assert token.root_sha256 == hashlib.sha256(b"a certificate").digest()
    assert "cmf1" not in repr(token)


@given(st.text(max_size=120))
def test_what_is_no_token_is_refused(text):
    with pytest.raises(UntrustedDataError, match="not an enrolment token"):
        enrolment.parse_token(text)


@given(st.integers(0, 200), st.characters(codec="ascii"))
def test_a_changed_token_is_refused_or_is_another_token(place, letter):
    good = enrolment.make_token(b"s" * 32, b"r")
    at = place % len(good)
    changed = good[:at] + letter + good[at + 1 :]
    try:
        token = enrolment.parse_token(changed)
    except UntrustedDataError:
        return
    assert token.text == changed.strip()


def test_a_charter_is_the_roots():
    raw = enrolment.sign_charter(CHARTER, ROOT)
    found = enrolment.verify_charter(raw, ROOT.public)
    assert (found.charter, found.witness) == (CHARTER, WITNESS)


def test_a_charter_by_anybody_else_or_of_another_kind_is_refused():
    other = enrolment.sign_charter(CHARTER, EcKey.generate())
    command = envelope.seal(b"{}", envelope.COMMAND_TYPE, ROOT)
    empty = envelope.seal(b"{}", enrolment.CHARTER_TYPE, ROOT)
    for raw, check in ((other, "envelope-signature"), (command, "envelope-form"), (empty, "charter-form")):
        with pytest.raises(UntrustedDataError) as caught:
            enrolment.verify_charter(raw, ROOT.public)
        assert caught.value.check == check


def test_a_bundle_says_where_devices_connect():
    bundle = Bundle(1, b"charter", "https://fleet.example:8444")
    assert enrolment.parse_bundle(enrolment.encode_bundle(bundle)) == bundle


@pytest.mark.parametrize(
    "address",
    ["http://fleet.example", "fleet.example:1", "https://", "https://h:0", "https://u@h", "https://h/x", "file:///"],
)
def test_a_bundle_without_an_https_address_is_refused(address):
    with pytest.raises(UntrustedDataError, match="enrolment bundle"):
        enrolment.parse_bundle(enrolment.encode_bundle(Bundle(1, b"charter", address)))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_bundle(raw):
    with pytest.raises(UntrustedDataError):
        enrolment.parse_bundle(raw)
