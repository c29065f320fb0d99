"""A value split over stream chunks never reaches the client, whole or in an 8-character fragment."""

from __future__ import annotations

import random

import pytest

from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.stream import StreamRedactor
from casemate.guard.verdict import Action, Channel, GuardPolicy

NAMES = Placeholders(bytes(32))
POLICY = GuardPolicy(output_entities={"*": Action.REDACT})
FRAGMENT = 8
ROUNDS = 400
KEY = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0B\n" * 9 + "-----END PRIVATE KEY-----"
VALUES = [
    "jane.roe+lists@mail.example.org",
    "4111 1111 1111 1111",
    "GB29 NWBK 6016 1331 9268 19",
    "+44 20 7946 0958",
    "2001:db8:85a3::8a2e:370:7334",
    "ghp_" + "x9Yz" * 9,
    "AKIA2OGYBAH6QW7TZL4P",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    KEY,
]
TEXTS = [f"Sure, here it is: {value} and that is all there is to say." for value in VALUES]
CASES = list(zip(TEXTS, VALUES, strict=True))


def chunks(text, chance):
    at = 0
    while at < len(text):
        size = chance.randint(1, 8)
        yield text[at : at + size]
        at += size


def fragments(value):
    return {value[at : at + FRAGMENT] for at in range(len(value) - FRAGMENT + 1)}


def leaks(out, value):
    return any(fragment in out for fragment in fragments(value))


def naive(text, chance):
    """The defence switched off: each chunk is redacted by itself, as guards without a hold-back do."""
    return "".join(redact_text(chunk, POLICY, Channel.OUTPUT, NAMES).text for chunk in chunks(text, chance))


def guarded(text, chance):
    redactor = StreamRedactor(POLICY, NAMES)
    out = "".join(redactor.feed(chunk).text for chunk in chunks(text, chance))
    return out + redactor.flush().text


@pytest.mark.parametrize(("text", "value"), CASES)
def test_control_redacting_chunk_by_chunk_leaks(text, value):
    assert leaks(naive(text, random.Random(1)), value)


@pytest.mark.parametrize(("text", "value"), CASES)
def test_no_chunking_leaks(text, value):
    chance = random.Random(2)
    for _ in range(ROUNDS):
        out = guarded(text, chance)
        assert not leaks(out, value)
        assert out.endswith(" and that is all there is to say.")
