"""What was JSON stays JSON, as a whole text and as a stream of tool arguments."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.guard.json_text import JsonState
from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.stream import StreamRedactor
from casemate.guard.verdict import Action, Channel, GuardPolicy
from support.values import PERSONAL, SECRETS, Maker

NAMES = Placeholders(bytes(32))
POLICY = GuardPolicy(output_entities={"*": Action.REDACT})
MAKER = Maker(21)
VALUES = [
    sentence.replace("{}", make(MAKER))
    for make, sentences in [*PERSONAL.values(), *SECRETS.values()]
    for sentence in sentences
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**19), 10**19),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([4111111111111111, -4111111111111111, 48.85837, 2.29448, 5555555555554444]),
    st.text(max_size=8),
    st.sampled_from(VALUES),
)
KEYS = st.text(max_size=5) | st.sampled_from(["password", "token", "card", "email", "note", "dob"])
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def stream(text, seed):
    redactor, chance, out, at = StreamRedactor(POLICY, NAMES), random.Random(seed), "", 0
    while at < len(text):
        size = chance.randint(1, 9)
        out += redactor.feed(text[at : at + size]).text
        at += size
    return out + redactor.flush().text


@settings(max_examples=300)
@given(
    st.lists(DOCUMENTS) | st.dictionaries(KEYS, DOCUMENTS),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.integers(0, 99),
)
def test_json_stays_json(document, ascii_only, indent, seed):
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    done = redact_text(text, POLICY, Channel.OUTPUT, NAMES).text
    read = json.loads(done)
    assert type(read) is type(document)
    assert len(read) == len(document)
    assert stream(text, seed) == done


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ('{"card": 4111111111111111}', '{"card": "[CREDIT_CARD_'),
        ('{"card":4111111111111111,"x":1}', '{"card":"[CREDIT_CARD_'),
        ("[4111111111111111]", '["[CREDIT_CARD_'),
        ("[48.85837, 2.29448]", '["[COORDINATES_'),
        ('{"card": "4111111111111111"}', '{"card": "[CREDIT_CARD_'),
        ('{"note": "\\"4111111111111111\\""}', '{"note": "\\"[CREDIT_CARD_'),
        ('{"mail": "bob\\u0040x.org"}', '{"mail": "[EMAIL_ADDRESS_'),
        ('{"note": "line\\nbob@x.org"}', '{"note": "line\\n[EMAIL_ADDRESS_'),
    ],
)
def test_a_number_becomes_a_string_and_a_string_stays_one(text, start):
    done = redact_text(text, POLICY, Channel.OUTPUT, NAMES).text
    assert done.startswith(start)
    json.loads(done)


@pytest.mark.parametrize("text", ["(4111111111111111)", "[1] see 4111 1111 1111 1111", "{see 4111111111111111}"])
def test_what_only_begins_like_json_still_loses_its_values(text):
    assert "4111" not in redact_text(text, POLICY, Channel.OUTPUT, NAMES).text


def test_the_beginning_decides():
    for text, is_json in [
        (' {"a"', True),
        ("{}", True),
        ("[1", True),
        ("[x", False),
        ("{a", False),
        ("a{", False),
        ("[", None),
    ]:
        state = JsonState()
        state.pass_over(text, 0, len(text))
        assert state.is_json is is_json, text
