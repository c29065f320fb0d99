"""A reference policy counts when a known person signed it, it is newer than the last, and it leaves nothing out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import envelope, reference_policy
from casemate.formats.evidence import STACK_PCR, EventKind
from support.evidence import AUTHOR, NOW, STACK, policy


def check_of(raw, *, public=AUTHOR.public, above=0):
    with pytest.raises(UntrustedDataError) as caught:
        reference_policy.verify(raw, public=public, above=above)
    return caught.value.check


def forced(**changes):
    """Sign what `sign` would refuse."""
    return envelope.seal(reference_policy.encode(policy(**changes)), reference_policy.TYPE, AUTHOR)


def test_a_signed_policy_is_read_back():
    raw = reference_policy.sign(policy(), AUTHOR)
    assert reference_policy.verify(raw, public=AUTHOR.public).policy == policy()


def test_a_policy_signed_by_another_is_refused():
    assert check_of(reference_policy.sign(policy(), SigningKey.generate())) == "envelope-signature"


@pytest.mark.parametrize("above", [3, 4, 100])
def test_an_older_policy_does_not_come_back(above):
    raw = reference_policy.sign(policy(version=3), AUTHOR)
    assert reference_policy.verify(raw, public=AUTHOR.public, above=2).policy.version == 3
    assert check_of(raw, above=above) == "policy-version"


@pytest.mark.parametrize(
    "changes",
    [
        {"pcrs": {}},
        {"pcrs": {0: ()}},
        {"pcrs": {STACK_PCR: ("0" * 64,)}},
        {"events": ()},
        {"required": ()},
        {"required": (EventKind.AGENT,)},
        {"expires": int(NOW) - 100},
        {"version": 0},
        {"pcrs": {24: ("0" * 64,)}},
    ],
)
def test_a_policy_that_leaves_a_check_out_is_refused_even_when_it_is_signed(changes):
    assert check_of(forced(**changes)) == "policy-form"


def test_a_policy_is_bounded():
    assert check_of(bytes(reference_policy.LIMIT + 1)) == "envelope-form"


def test_a_second_spelling_is_refused():
    payload = b" " + reference_policy.encode(policy(STACK))
    assert check_of(envelope.seal(payload, reference_policy.TYPE, AUTHOR)) == "policy-form"


@given(st.binary(max_size=200))
def test_random_bytes_are_no_policy(raw):
    assert check_of(raw) == "envelope-form"
    assert check_of(envelope.seal(raw, reference_policy.TYPE, AUTHOR)) == "policy-form"


@given(st.data())
def test_no_changed_byte_is_accepted(data):
    raw = bytearray(reference_policy.sign(policy(), AUTHOR))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    check_of(bytes(raw))
