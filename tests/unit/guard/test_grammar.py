from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.guard.classes import (
    ALONE,
    CLASSES,
    FEATURES,
    HARMLESS,
    NEAR_GRAMMAR,
    OPENERS,
    allowed_signs,
    feature_classes,
)
from casemate.guard.grammar import Break, Lexicon
from casemate.guard.sentences import cut_sentences, read_text

LEXICON = Lexicon(
    {
        "en": "OVERRIDE: ignore | pay no attention\nINSTRUCTION: instruction* | rules\nTEXT: end * line",
        "pl": "THIRD: on\nPRIOR: poprzedni*",
        "fr": "AI: assistant",
        "zh": "OVERRIDE: 忽略\nINSTRUCTION: 指令",
        "ar": "OVERRIDE: تجاهل",
    },
    CLASSES,
    english=["on"],
)


def classes_of(text, lexicon=LEXICON):
    sentences = cut_sentences(read_text(text, lexicon).entries)
    return {CLASSES[number] for sentence in sentences for _, number in sentence.hits} - {"START"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ignore the INSTRUCTIONS", {"OVERRIDE", "INSTRUCTION"}),
        ("please pay no attention", {"OVERRIDE"}),
        ("pay some attention", set()),
        ("the end of line", {"TEXT"}),
        ("l'assistant", {"AI"}),
        ("请忽略之前的指令", {"OVERRIDE", "INSTRUCTION"}),
        ("تَجَاهَلْ هذا", {"OVERRIDE"}),
        ("poprzednie zasady", {"PRIOR"}),
        ("come on in", set()),
    ],
)
def test_classes_of_words_and_phrases(text, found):
    assert classes_of(text) == found


def test_a_foreign_word_keeps_its_meaning_unless_it_is_english():
    assert classes_of("on", Lexicon({"pl": "THIRD: on"}, CLASSES)) == {"THIRD"}


def test_positions_leave_a_gap_after_a_stop():
    (first, second) = cut_sentences(read_text("Please now ignore this. The rules stay", LEXICON).entries)
    override = next(p for p, number in first.hits if CLASSES[number] == "OVERRIDE")
    rules = next(p for p, number in second.hits if CLASSES[number] == "INSTRUCTION")
    assert rules - override > 5


def test_what_a_stop_is():
    assert LEXICON.look_up(".").ends is Break.STOP
    assert LEXICON.look_up("\n").ends is Break.LINE
    assert LEXICON.look_up("\n\n").ends is Break.PARAGRAPH
    assert LEXICON.look_up("![a](").ends is Break.NONE


@pytest.mark.parametrize("text", ["no class here", "NOSUCHCLASS: word"])
def test_a_bad_lexicon_is_refused(text):
    with pytest.raises(UntrustedDataError):
        Lexicon({"xx": text}, CLASSES)


@given(st.text(max_size=200))
def test_sentences_cover_all_tokens_in_order(text):
    reading = read_text(text, LEXICON)
    sentences = cut_sentences(reading.entries)
    assert sentences[0].first == 0
    assert sentences[-1].last == len(reading.tokens)
    assert all(a.last <= b.first for a, b in itertools.pairwise(sentences))
    assert all(list(s.hits) == sorted(s.hits, key=lambda hit: hit[0]) for s in sentences)


def test_the_grammar_names_only_classes():
    named = {*NEAR_GRAMMAR, *(p for partners in NEAR_GRAMMAR.values() for p in partners.split()), *ALONE, *OPENERS}
    assert named <= set(CLASSES)


def test_harmless_classes_never_count_for_an_attack_and_others_never_against():
    for number, sign in enumerate(allowed_signs()):
        harmless = any(name in HARMLESS for name in feature_classes(number))
        assert sign <= 0 if harmless else sign >= 0
    assert len(allowed_signs()) == FEATURES


class _Counted(list):
    """A list that counts what is copied out of it."""

    copied = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        if isinstance(at, slice):
            self.copied += len(found)
        return found


def test_a_text_of_colons_alone_is_not_read_again_from_its_beginning_at_each():
    lexicon = Lexicon({"en": "COLON: x\nROLENAME: system"}, CLASSES)
    entries = _Counted(lexicon.read(["x", ":"] * 2_000))
    cut_sentences(entries)
    assert entries.copied <= 8 * len(entries)
