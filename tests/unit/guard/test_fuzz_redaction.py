"""The short run of `tests/fuzz/fuzz_redaction.py`, driven by hypothesis, and texts made to take time or to break it."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.guard import Channel, Guard, GuardPolicy
from casemate.guard.verdict import Action
from support.redaction import assert_sound, redacted

WORDS = (
    "bob@x.org bob [at] dot 4111 1111 GB29 NWBK +49 30 (415) x23 1990-01-02 May 5, 2004 born password key token = : is "
    "\" ' { } [ ] , \\ \\n \\u0040 -----BEGIN RSA PRIVATE KEY----- -----END MIIE ghp_ eyJ 0x 1.2.3.4 [.] :: // www. "
    "mysql -p login / admin: seed abandon ability Mr. Dear \u200b \uff11 \u0660 \u0301 \U0001f600 \u96fb\u8a71 \ud800 |"
)
PIECES = st.sampled_from([*WORDS.split(" "), " ", "  ", "\n", "x" * 70, "9" * 40])
ANY = st.text(alphabet=st.characters(exclude_categories=()), max_size=6)
TEXTS = st.lists(PIECES | ANY, max_size=40).map("".join) | st.lists(PIECES | ANY, max_size=40).map(" ".join)


def nested_base64(size):
    text = "secret"
    while len(text) < size:
        text = base64.b64encode(text.encode()).decode()
    return text


HOSTILE = {
    "letters": "a" * 100_000,
    "digits": "1234567890" * 20_000,
    "one line": "".join(random.Random(5).choices('abcdefgh XYZ0123456789=:/.@-_"', k=60_000)),
    "nested base64": nested_base64(60_000),
    "surrogates": "\ud800" * 60_000,
    "quantifier bait": "(((((a+)+)+)+)+)" * 2_000,
    "key headers": "-----BEGIN " * 3_000,
    "open keys": "-----BEGIN RSA PRIVATE KEY-----\n" * 1_000,
    "assignments": "password: key is " * 2_000,
    "command lines": "mysql -p " * 3_000,
    "mail": "a@b.c at d dot " * 2_000,
    "escapes": "\\u0040" * 5_000,
    "open JSON": '{"a":' * 6_000,
    "blanks": " \t\n" * 30_000,
}


@settings(max_examples=400)
@given(TEXTS, st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_any_mixture_is_redacted_soundly(text, sizes):
    assert_sound(text, sizes)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_made_to_take_time_is_read_to_its_end(name):
    text = HOSTILE[name]
    done = redacted(text)
    assert len(done.text) <= 4 * len(text)
    assert all(0 <= span.start < span.end <= len(text) for span in done.spans)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_made_to_take_time_gets_a_verdict(name):
    verdict = Guard.default().check(HOSTILE[name][:20_000], Channel.USER, GuardPolicy())
    assert "guard-error" not in verdict.reasons


def test_what_is_over_the_limit_is_blocked_unread():
    verdict = Guard.default().check("1" * 10_000_000, Channel.USER, GuardPolicy())
    assert (verdict.action, "over-size" in verdict.reasons) == (Action.BLOCK, True)


def test_over_budget_is_blocked():
    verdict = Guard.default().check("some words here", Channel.USER, GuardPolicy(), over_budget=lambda: True)
    assert verdict.action is Action.BLOCK
