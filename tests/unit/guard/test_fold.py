from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.fold import View, fold, join, open_escape

TEXT = st.text(alphabet=st.sampled_from('ab1 \\"nu0043\u200b\uff21\u00e9\u0301\ufb01\u2028\x00\ud800'), max_size=40)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("plain text", "plain text"),
        ("\uff42\uff4f\uff42\uff20x\uff0eorg", "bob@x.org"),
        ("b\u200bo\u200db", "bob"),
        ("\u0661\u0662\u0663", "123"),
        ("\U0001d7d8\u2460", "01"),
        ("4\u20111\u00a02\u20093", "4-1 2 3"),
        (r"bob\u0040x.org\n\"\/", 'bob@x.org\n"/'),
        ("\ufb01sh", "fish"),
        ("caf\u00e9 \u65e5\u672c", "caf\u00e9 \u65e5\u672c"),
        ("\ud800\x00", "\ufffd"),
        ("C:\\users", "C:\\users"),
    ],
)
def test_what_a_text_folds_to(text, folded):
    assert fold(text).text == folded


def test_ranges_lead_back_to_the_original():
    text = "x \uff42\u200b\u0301o\\u0040y"
    view = fold(text)
    at = view.text.index("bo@")
    start, end = view.original(at, at + 3)
    assert text[start:end] == "\uff42\u200b\u0301o\\u0040"


@given(TEXT, st.integers(0, 40))
def test_a_text_folds_to_the_same_view_in_pieces(text, at):
    whole = fold(text)
    first = text[:at]
    first = first[: len(first) - open_escape(first)]
    pieces = join(fold(first), len(first), fold(text[len(first) :]))
    assert pieces.text == whole.text
    size = len(whole.text)
    assert [pieces.original(i, i + 1) for i in range(size)] == [whole.original(i, i + 1) for i in range(size)]


@given(TEXT)
def test_ranges_are_in_order_and_inside(text):
    view = fold(text)
    spans = [view.original(at, at + 1) for at in range(len(view.text))]
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert spans == sorted(spans)


@pytest.mark.parametrize(
    ("text", "open_characters"),
    [("a\\", 1), ("a\\u", 2), ("a\\u00e", 5), ("a\\\\", 0), ("a\\\\\\", 1), ("a\\u00e9", 0), ("a\\x", 0), ("", 0)],
)
def test_how_much_of_an_escape_is_still_open(text, open_characters):
    assert open_escape(text) == open_characters


def test_an_empty_view_has_no_ranges():
    assert View().starting(0) == 0
    assert fold("\u200b").starting(0) == 0
