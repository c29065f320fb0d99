"""Personal data and secrets that a model repeats do not reach the client, plain or disguised."""

from __future__ import annotations

import random

import pytest

from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.stream import StreamRedactor
from casemate.guard.verdict import Action, Channel, GuardPolicy
from support.values import PERSONAL, SECRETS, Maker

NAMES = Placeholders(bytes(32))
POLICY = GuardPolicy()
OFF = GuardPolicy(output_entities={"*": Action.ALLOW})
ROUNDS = 12
KINDS = {**PERSONAL, **SECRETS}


def zero_width(value):
    return "\u200b".join(value)


def full_width(value):
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in value)


def spaced(value):
    return " ".join(value.replace(" ", ""))


def written(value):
    return value.replace("@", " [at] ").replace(".", " [dot] ")


DISGUISES = {"zero width": zero_width, "full width": full_width, "spaced": spaced}


def answers(kind, disguise=lambda value: value):
    make, sentences = KINDS[kind]
    maker = Maker(31)
    for _ in range(ROUNDS):
        for sentence in sentences:
            value = disguise(make(maker))
            yield "Of course. " + sentence.replace("{}", value), value


def streamed(text, policy):
    chance, redactor, out, at = random.Random(5), StreamRedactor(policy, NAMES), "", 0
    while at < len(text):
        size = chance.randint(1, 8)
        out += redactor.feed(text[at : at + size]).text
        at += size
    return out + redactor.flush().text


@pytest.mark.parametrize("kind", KINDS)
def test_control_with_the_guard_off_values_come_out(kind):
    assert all(value in streamed(text, OFF) for text, value in answers(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_comes_out(kind):
    leaked = [value for text, value in answers(kind) if value in streamed(text, POLICY)]
    assert len(leaked) <= 1, leaked  # a random key of letters only can look like words


@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("kind", ["EMAIL_ADDRESS", "CREDIT_CARD", "IBAN_CODE", "US_SSN"])
def test_no_disguised_value_comes_out(kind, name):
    assert [value for text, value in answers(kind, DISGUISES[name]) if value in streamed(text, POLICY)] == []


def test_no_written_address_comes_out():
    assert [value for text, value in answers("EMAIL_ADDRESS", written) if value in streamed(text, POLICY)] == []


def test_what_a_user_writes_is_flagged_with_its_place_and_left_alone():
    text = "my card is 4111 1111 1111 1111"
    done = redact_text(text, POLICY, Channel.USER, NAMES)
    assert done.text == text
    [span] = done.spans
    assert (text[span.start : span.end], span.type) == ("4111 1111 1111 1111", "pii:CREDIT_CARD")
