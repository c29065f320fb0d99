"""Phrases are found in a stream as in a whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.phrases import Phrases, find_phrases

PHRASES = [Phrases({"x": ["project falcon"]}), Phrases({"x": ["falcon nine heavy"], "y": ["falcon"]})]
WORDS = st.lists(
    st.sampled_from(["project", "Falcon", "nine", "HEAVY", "and", ",", ".", "falcons", "pro"]), max_size=12
)


def kinds(text):
    return [(text[m.start : m.end], m.kind) for m in find_phrases(text, PHRASES, final=True).matches]


def test_the_longest_phrase_wins_in_any_case_and_spacing():
    assert kinds("Project  FALCON, nine") == [("Project  FALCON", "x")]
    assert kinds("a falcon nine heavy") == [("falcon nine heavy", "x")]
    assert kinds("falcon-nine lives") == [("falcon", "y")]


def test_a_phrase_is_whole_words_in_one_sentence():
    assert kinds("falcons project") == []
    assert kinds("the project. Falcon") == [("Falcon", "y")]


def test_what_may_become_a_phrase_is_held():
    assert find_phrases("see project fal", PHRASES, final=False).hold == 4
    assert find_phrases("see project x ", PHRASES, final=False).hold == 14
    assert find_phrases("see proj", PHRASES, final=False).hold == 4


@given(WORDS, st.lists(st.integers(1, 6), min_size=1, max_size=40))
def test_a_stream_finds_what_the_whole_text_holds(words, sizes):
    text = " ".join(words)
    found, held, at, step = [], "", 0, 0
    while at < len(text):
        held += text[at : at + sizes[step % len(sizes)]]
        at += sizes[step % len(sizes)]
        step += 1
        seen = find_phrases(held, PHRASES, final=False)
        found += [(held[m.start : m.end], m.kind) for m in seen.matches]
        held = held[seen.hold :]
    found += [(held[m.start : m.end], m.kind) for m in find_phrases(held, PHRASES, final=True).matches]
    assert found == kinds(text)
