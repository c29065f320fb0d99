"""Picks and words: what a device follows and a fleet believes, and everything they do not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.ecdsa import EcKey
from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import director, envelope
from casemate.formats.director import Choice, Pick, Word

KEY, OTHER, DEVICE_KEY = SigningKey.generate(), SigningKey.generate(), EcKey.generate()
FLEET, DEVICE = "ab" * 16, "00000000-0000-4000-8000-00000000000a"
NOW = 1_790_000_000
CHOICE = Choice("stable", 3, "a" * 64, "b" * 64, 900)
GOOD = Pick(1, FLEET, DEVICE, 5, "take", NOW, NOW + 3600, CHOICE, (60, 120), 4096)
WORD = Word(1, FLEET, DEVICE, "a" * 64, "good", NOW, "fine", 1, "pi5", 80.5, 700.0)


def verify(raw, *, after=5, earliest=NOW, public=KEY.public, fleet=FLEET, device=DEVICE):
    return director.verify_pick(raw, public=public, fleet=fleet, device=device, after=after, earliest=earliest).pick


def refusal(raw, **context) -> str:
    with pytest.raises(UntrustedDataError) as caught:
        verify(raw, **context)
    return caught.value.check


def test_a_pick_that_fits_is_followed_and_may_be_given_again():
    raw = director.sign_pick(GOOD, KEY)
    assert verify(raw) == GOOD
    assert verify(raw, after=0) == GOOD


@pytest.mark.parametrize(
    ("changes", "context", "check"),
    [
        ({}, {"public": OTHER.public}, "envelope-signature"),
        ({}, {"fleet": "cd" * 16}, "pick-fleet"),
        ({}, {"device": DEVICE[:-1] + "b"}, "pick-device"),
        ({}, {"after": 6}, "pick-sequence"),
        ({}, {"earliest": NOW + 3601}, "pick-expired"),
        ({"expires": NOW}, {}, "pick-form"),
        ({"expires": NOW + director.MAX_LIFE + 1}, {}, "pick-form"),
        ({"choice": None}, {}, "pick-form"),
        ({"action": "keep"}, {}, "pick-form"),
    ],
)
def test_each_check_alone_refuses(changes, context, check):
    assert refusal(director.sign_pick(msgspec.structs.replace(GOOD, **changes), KEY), **context) == check


@given(st.binary(max_size=300))
def test_no_bytes_are_a_pick_or_a_word_by_accident(raw):
    with pytest.raises(UntrustedDataError):
        verify(envelope.seal(raw, director.PICK_TYPE, KEY))
    word = envelope.seal(raw, director.WORD_TYPE, DEVICE_KEY)
    with pytest.raises(UntrustedDataError):
        director.verify_word(word, public=DEVICE_KEY.public, fleet=FLEET, device=DEVICE)
    assert refusal(raw) == "envelope-form"


@given(
    st.sampled_from(["good", "failed"]),
    st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
    st.floats(0, 1e9) | st.none(),
)
def test_a_word_comes_back_as_it_was_signed(outcome, why, latency):
    word = msgspec.structs.replace(WORD, outcome=outcome, why=why, first_token_ms=latency)
    raw = director.sign_word(director.encode_word(word), DEVICE_KEY)
    assert director.verify_word(raw, public=DEVICE_KEY.public, fleet=FLEET, device=DEVICE).word == word


def test_a_word_is_no_pick_and_another_devices_word_is_nobodys():
    raw = director.sign_word(director.encode_word(WORD), DEVICE_KEY)
    assert refusal(raw) == "envelope-form"
    for context in ({"fleet": "cd" * 16, "device": DEVICE}, {"fleet": FLEET, "device": DEVICE[:-1] + "b"}):
        with pytest.raises(UntrustedDataError) as caught:
            director.verify_word(raw, public=DEVICE_KEY.public, **context)
        assert caught.value.check == "word-device"


def test_spaces_make_another_document():
    payload = msgspec.json.format(msgspec.json.encode(GOOD, order="sorted"))
    assert refusal(envelope.seal(payload, director.PICK_TYPE, KEY)) == "pick-form"
