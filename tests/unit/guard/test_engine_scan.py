"""Looking only where evidence is changes nothing: Hyperscan, its fallback and reading everything give the same."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from casemate.guard import engine_scan, session
from casemate.guard.engine_scan import PythonScanner, best_scanner
from casemate.guard.entities import QUIET
from casemate.guard.entities.assigned import _TELLING
from casemate.guard.entities.evidence import EVIDENCE
from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.verdict import Action, Channel, GuardPolicy
from support.values import texts

hyperscan = pytest.importorskip("hyperscan")

NAMES = Placeholders(bytes(32))
POLICIES = [
    GuardPolicy(output_entities={"*": Action.REDACT}),
    GuardPolicy(output_entities={"*": Action.REDACT, **dict.fromkeys(QUIET, Action.REDACT)}),
]
PROSE = [
    row["text"]
    for line in Path(__file__).parents[2].joinpath("corpus/guard/ordinary.jsonl").read_text().splitlines()
    if (row := json.loads(line))
]
FRAGMENTS = [
    *(
        "bob",
        "@",
        ".",
        " com",
        " at ",
        " dot ",
        "[at]",
        "4111",
        "1111",
        "GB29",
        "NWBK",
        "6016",
        " - ",
        "25 December 2004",
    ),
    *(
        "21th of June 1954",
        "de",
        "Mr. ",
        "John ",
        "Smith",
        "password ",
        "is ",
        ": ",
        "= ",
        '"',
        '","',
        "{",
        "[",
        "\\u0040",
    ),
    *(
        "\u200b",
        "\uff11",
        "\u00e9",
        "\u65e5\u672c",
        "seed phrase ",
        "abandon ability able about above absent absorb ",
        "otp ",
    ),
    *(
        "1.2.3.4",
        "fe80::1",
        "zip ",
        "94110",
        "passport ",
        "C01X00T47",
        "born ",
        "1/2/99",
        "https://",
        "](",
        "![x](http://e.x/a)",
    ),
    *(
        "-----BEGIN RSA PRIVATE KEY-----",
        "MIIEow" * 12,
        "b o b @ x . o r g",
        "ghp_" + "a1" * 18,
        "admin:",
        "login joe / ",
        "x1!y2",
    ),
    *(
        "net user joe ",
        "-p",
        "--token ",
        "basic ",
        "bearer ",
        "key ",
        "lat 48.8583",
        "AB 12 34 56 C",
        "0" * 30,
        "x" * 60,
        "| ",
        "\n",
    ),
]


class Nothing:
    """Finds no place special: everything is read."""

    def survey(self, text, *, dates):
        return None


def mixture(chance):
    """Return a text of prose, values and fragments, sometimes with a hole."""
    parts = []
    for _ in range(chance.randint(1, 3)):
        prose = chance.choice(PROSE)
        at = chance.randint(0, len(prose))
        parts.append(prose[at : at + chance.randint(0, 120)])
        parts.append(
            "".join(chance.choice(FRAGMENTS) + chance.choice(["", " ", ""]) for _ in range(chance.randint(0, 6)))
        )
        parts.append(chance.choice([" ", "\n", ""]) + texts(chance.randint(0, 10**6), 1)[0])
    text = "".join(parts)
    hole = chance.randint(0, len(text))
    return text[:hole] + text[hole + chance.choice([0, 0, 1, 4]) :]


def differ(seed, count, monkeypatch):
    """Return the texts on which the ways of reading disagree."""
    chance = random.Random(seed)
    scanners = [best_scanner(), PythonScanner()]
    assert type(scanners[0]).__name__ == "HyperscanScanner"
    is_idle = session.is_idle
    wrong = []
    for number in range(count):
        text, policy = mixture(chance), POLICIES[number % 2]
        monkeypatch.setattr(session, "is_idle", lambda _context, _segment: False)
        expected = redact_text(text, policy, Channel.OUTPUT, NAMES, Nothing())
        monkeypatch.setattr(session, "is_idle", is_idle)
        done = [redact_text(text, policy, Channel.OUTPUT, NAMES, scanner) for scanner in (*scanners, Nothing())]
        if any(one != expected for one in done):
            wrong.append(text)
    return wrong


def test_all_ways_of_reading_agree(monkeypatch):
    assert differ(1, 1000, monkeypatch) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_ways_of_reading_agree_on_many_texts(monkeypatch):
    assert differ(2, 100_000, monkeypatch) == []


def test_ordinary_text_is_hardly_looked_at():
    scanner = best_scanner()
    places = [scanner.survey(text, dates=False).places for text in PROSE]
    assert sum(map(bool, places)) < len(PROSE) / 3


def test_dense_text_is_read_from_end_to_end():
    assert best_scanner().survey("4111 " * 2000, dates=False) is None
    assert PythonScanner().survey("a@" * 2000, dates=False) is None


def test_without_the_wheel_the_fallback_is_used(monkeypatch):
    monkeypatch.setattr(engine_scan, "hyperscan", None)
    assert isinstance(best_scanner(), PythonScanner)


def test_no_module_needs_the_wheel(monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperscan", None)
    monkeypatch.delitem(sys.modules, "casemate.guard.engine_scan")
    import casemate.guard.engine_scan as again  # noqa: PLC0415 - imported anew, without the wheel

    assert again.hyperscan is None
    assert isinstance(again.best_scanner(), again.PythonScanner)


def test_evidence_has_no_look_around():
    assert not [e.pattern for e in EVIDENCE if "(?=" in e.pattern or "(?!" in e.pattern or "(?<" in e.pattern]


@pytest.mark.parametrize("scanner", [best_scanner(), PythonScanner()], ids=["hyperscan", "re"])
def test_every_word_that_speaks_of_a_secret_is_evidence_in_every_spelling(scanner):
    missed = []
    for word in sorted(_TELLING - {"code"}):  # a code needs a word beside it that says which
        title, upper = word.title(), word.upper()
        for name in (word, title, upper, f"my{title}", f"user_{word}", f"{word}2", f"{word}Name", f"my{upper}"):
            text = f"so here we go: the one {name} = zK8vQ2nL5xR1"
            at = text.index("zK8")
            if not any(place <= at <= until for place, until in scanner.survey(text, dates=False).places):
                missed.append(name)
    assert missed == []
