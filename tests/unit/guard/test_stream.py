"""A stream lets out what the whole text would have become, however it is cut."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.guard.entities import pem
from casemate.guard.output import OutputWatch
from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.stream import StreamRedactor
from casemate.guard.verdict import Action, Channel, GuardPolicy
from support.values import texts

CORPUS = Path(__file__).parents[2] / "corpus/guard/ordinary.jsonl"
NAMES = Placeholders(bytes(32))
POLICY = GuardPolicy(output_entities={"*": Action.REDACT})
PARTS = [
    *("bob", "@", "example", ".", "com", " com", " at ", " dot ", "[at]", "(dot)", "a@b.co", "b c d ", "x" * 300),
    *("4111 1111 1111 1111", "4111", "1111", "+49 30 1234567", "GB29 NWBK 6016 1331 9268 19", "GB29", "NWBK", "6016"),
    *("25 December 2004", "December", " de ", "of", "12", "1", "card ", "order ", "born on ", "1990-01-02", "::1"),
    *(
        "-----BEGIN RSA PRIVATE KEY-----",
        "-----END RSA PRIVATE KEY-----",
        "-----BEGIN",
        "PRIVATE KEY",
        "--",
        "MIIEow" * 12,
    ),
    *(
        "the quick brown fox jumps over it ",
        "Mr. ",
        "John ",
        "password ",
        "is ",
        ": ",
        " = ",
        '"',
        '","',
        '":"',
        "{",
        "}",
        "[",
    ),
    *(
        "\\",
        "\\n",
        "\\u0040",
        "\\u00",
        "\u200b",
        "\uff11\uff12\uff13",
        "\u00e9",
        "e\u0301",
        "\u65e5\u672c",
        "\ud800",
        "\x00",
    ),
    *("AKIA" + "A" * 16, "ghp_" + "a" * 36, "eyJhbGciOi.eyJhbGciOiJ.abcdefghijk", "x1" * 1200, "0" * 2100, "fe80::1"),
    *(
        "1.2.3.4",
        "postgres://u:p4ss@h/",
        "https://x.com/a",
        "[EMAIL_ADDRESS_3f2a1c]",
        "[CARD_",
        "\r\n",
        "\n",
        "\n\n",
        " ",
        "  ",
    ),
]
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=14).map("".join)


def stream(text, sizes, watch=None):
    """Feed *text* in chunks of the sizes that *sizes* yields; return output, spans, why it stopped."""
    redactor = StreamRedactor(POLICY, NAMES, watch=watch)
    out, spans, at = "", [], 0
    while at < len(text):
        size = next(sizes)
        emission = redactor.feed(text[at : at + size])
        at += size
        out += emission.text
        spans += emission.spans
        if emission.stop:
            return out, tuple(spans), emission.stop
    emission = redactor.flush()
    return out + emission.text, (*spans, *emission.spans), emission.stop


def sizes(seed, largest):
    chance = random.Random(seed)
    while True:
        yield chance.randint(1, largest)


def assert_same(text, seed, largest):
    whole = redact_text(text, POLICY, Channel.OUTPUT, NAMES)
    out, spans, stop = stream(text, sizes(seed, largest))
    assert stop in (None, "cap")
    assert (out, spans) == (whole.text, whole.spans)


@settings(max_examples=1000)
@given(TEXTS, st.integers(0, 2**32), st.sampled_from([1, 3, 8, 40, 400]))
def test_any_chunking_is_the_whole_text(text, seed, largest):
    assert_same(text, seed, largest)


@pytest.mark.long
@settings(max_examples=100_000)
@given(TEXTS, st.integers(0, 2**32), st.sampled_from([1, 3, 8, 40, 400]))
def test_any_of_many_chunkings_is_the_whole_text(text, seed, largest):
    assert_same(text, seed, largest)


def many_chunkings(count):
    """Chunk texts full of values at random and compare with the whole text, *count* times."""
    chance = random.Random(count)
    made = [(text, redact_text(text, POLICY, Channel.OUTPUT, NAMES)) for text in texts(count, count // 25)]
    for number in range(count):
        text, whole = made[number % len(made)]
        assert stream(text, sizes(chance.random(), 8)) == (whole.text, whole.spans, None)


@pytest.mark.long
def test_ten_thousand_chunkings_are_the_whole_text():
    many_chunkings(10_000)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_chunkings_are_the_whole_text():
    many_chunkings(100_000)


def test_ordinary_text_is_hardly_held():
    rows = CORPUS.read_text().splitlines()
    held = []
    for row in rows:
        redactor = StreamRedactor(POLICY, NAMES)
        for piece in re.findall(r" ?\w{1,6}|\s|[^\w\s]", json.loads(row)["text"]):
            redactor.feed(piece)
            held.append(redactor.held)
    held.sort()
    assert sum(held) / len(held) <= 6
    assert held[int(len(held) * 0.99)] <= 40


def test_a_key_without_end_stops_the_stream():
    text = "see -----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow8A/b+c\n" * 3000 + "tail"
    out, spans, stop = stream(text, sizes(1, 8))
    assert stop == "cap"
    assert out.startswith("see [PRIVATE_KEY_")
    assert "MIIE" not in out
    assert len(spans) == 1


def test_nothing_leaves_after_a_stop():
    redactor = StreamRedactor(POLICY, NAMES, watch=OutputWatch(canaries=("c4n4ry-81726354",)))
    assert redactor.feed("the word is c4n4ry-81726354 ok ").stop == "canary"
    assert redactor.feed("more") == redactor.flush()
    assert not redactor.flush().text


def test_a_blocked_kind_stops_before_the_value():
    policy = GuardPolicy(output_entities={"*": Action.REDACT, "secret:*": Action.BLOCK})
    emission = StreamRedactor(policy, NAMES).feed("ok bob@x.org ghp_" + "a1B2" * 9 + " rest ")
    assert emission.stop == "block:secret:github-pat"
    assert emission.text.startswith("ok [EMAIL_ADDRESS_")
    assert "ghp_" not in emission.text


def test_a_fault_inside_lets_nothing_out(monkeypatch):
    redactor = StreamRedactor(POLICY, NAMES)
    monkeypatch.setattr(redactor._session, "pieces", lambda _text: 1 / 0)
    assert redactor.feed("some words here ").stop == "guard-error"
    assert not redactor.flush().text


def test_ordinary_words_leave_as_soon_as_the_next_one_begins():
    redactor = StreamRedactor(POLICY, NAMES)
    assert redactor.feed("Hello").text == ""
    assert redactor.feed(" world").text == "Hello "
    assert redactor.feed(",").text == ""
    assert redactor.feed(" ").text == "world, "
    assert redactor.flush().text == ""


def test_a_long_key_is_not_read_again_for_every_piece(monkeypatch):
    looks = []
    block_end = pem.block_end
    monkeypatch.setattr(pem, "block_end", lambda *args, **kwargs: looks.append(1) or block_end(*args, **kwargs))
    text = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow8A/b+c\n" * 1000 + "-----END RSA PRIVATE KEY-----\n"
    out, _spans, stop = stream(text, iter(lambda: 3, None))
    assert (stop, out.startswith("[PRIVATE_KEY_")) == (None, True)
    assert len(looks) < 100
