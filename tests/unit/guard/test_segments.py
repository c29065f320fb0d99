"""Cuts fall where no value can go on, and nowhere else; a stream reaches the same ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.fold import fold
from casemate.guard.segments import UNDECIDED, WINDOW, anchor_before, next_cut
from support.values import PERSONAL, SECRETS, Maker


def segments(text, context=""):
    start, parts = 0, []
    while start < len(text):
        cut = next_cut(text, start, start, context, final=True)
        parts.append(text[start : cut.end])
        start = cut.end
    return parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the quick fox", ["the ", "quick ", "fox"]),
        ("call 030 123 45 67 now", ["call ", "030 123 45 67 ", "now"]),
        ("GB29 NWBK 6016 1331 9268 19 ok", ["GB29 NWBK 6016 1331 9268 19 ", "ok"]),
        ("bob [at] example [dot] com yes", ["bob [at] example [dot] com ", "yes"]),
        ("on 25 de diciembre de 2004 at noon", ["on ", "25 de diciembre de 2004 at noon"]),
        ("b o b @ x . o r g", ["b o b @ x . o r g"]),
        ("Dr. Ann Lee said", ["Dr. Ann Lee ", "said"]),
        ('"a","b"', ['"a",', '"b"']),
        ("one\ntwo", ["one\n", "two"]),
        ("4111 1111\n1111 1111", ["4111 1111\n", "1111 1111"]),
        ("\u65e5\u672c", ["\u65e5", "\u672c"]),
    ],
)
def test_where_the_cuts_are(text, expected):
    assert segments(text) == expected


@pytest.mark.parametrize("kind", [*PERSONAL, *SECRETS])
def test_no_value_is_cut(kind):
    maker = Maker(3)
    make, sentences = {**PERSONAL, **SECRETS}[kind]
    for _ in range(40):
        for sentence in sentences:
            value = make(maker)
            text = fold("Well, " + sentence.replace("{}", value)).text
            at = text.index(value)
            cuts, start = [], 0
            for part in segments(text):
                start += len(part)
                cuts.append(start)
            assert not [cut for cut in cuts if at < cut < at + len(value)], text


@given(st.text(alphabet='ab1 \n.@-("[:,A', max_size=60), st.integers(0, 60))
def test_a_decided_cut_stays(text, at):
    early = next_cut(text[:at], 0, 0, "", final=False)
    if early.end != UNDECIDED:
        assert next_cut(text, 0, 0, "", final=True).end == early.end


def test_a_run_without_gaps_is_cut_by_force():
    cut = next_cut("x" * (WINDOW + 100), 0, 0, "", final=True)
    assert (cut.end, cut.forced) == (WINDOW, True)


@given(st.text(alphabet='ab1 \n.@-("[:,A|', max_size=120))
def test_an_anchor_is_a_cut(text):
    anchor = anchor_before(text, 0, len(text))
    cuts, start = {0}, 0
    for part in segments(text):
        start += len(part)
        cuts.add(start)
    assert anchor in cuts
