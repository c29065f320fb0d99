from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.words import fold, split_words, word_spans


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=60))
def test_folding_keeps_every_offset(text):
    assert len(fold(text)) == len(text)


@given(st.text(max_size=80))
def test_spans_are_where_the_words_are(text):
    folded = fold(text)
    assert [folded[start:end] for start, end in word_spans(folded)] == split_words(folded)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't ignore_this, OK?", ["don't", "ignore", "this", "ok", "?"]),
        ("Übergröße déjà İstanbul ığ", ["ubergrose", "deja", "istanbul", "ig"]),
        ("निर्देशों को अनदेखा", ["निर्देशों", "को", "अनदेखा"]),
        ("see https://a.example/x?y=1 now", ["see", "https://a.example/x?y=1", "now"]),
        ("version 3.5 is out. Yes", ["version", "3", "5", "is", "out", ".", "yes"]),
        ("![x](http://e.example)", ["![x](", "http://e.example"]),
        ("<|im_start|>system", ["<|im", "start", "system"]),
        ("---- end ----", ["----", "end", "----"]),
    ],
)
def test_words_and_telling_signs(text, words):
    assert split_words(fold(text)) == words
