"""From words to sentences: which classes of meaning stand where.

Positions count tokens over the whole text; a stop adds a gap, so that words of different sentences are never close.
Only tokens that mean something are looked at, which is what makes ordinary prose cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from casemate.guard.classes import NUMBER
from casemate.guard.grammar import Break, Entry, Lexicon, phrase_classes
from casemate.guard.words import fold, split_words

SENTENCE_LIMIT: Final = 40
SENTENCE_MIN: Final = 3
STOP_GAP: Final = 5
NAME_LIMIT: Final = 3

_START: Final = NUMBER["START"]
_COLON: Final = NUMBER["COLON"]
_ROLENAME: Final = NUMBER["ROLENAME"]
_ROLELINE: Final = NUMBER["ROLELINE"]


@dataclass(slots=True)
class Sentence:
    """What stands in one sentence: class hits in order of position, and the token range it covers."""

    first: int
    hits: list[tuple[int, int]] = field(default_factory=list)  # (position, class)
    last: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """A normalised text as tokens, and what each token means (None: nothing)."""

    text: str
    tokens: list[str]
    entries: list[Entry | None]


def read_text(text: str, lexicon: Lexicon) -> Reading:
    """Return the reading of the normalised *text*."""
    tokens = split_words(fold(text))
    if not text.isascii():
        tokens = lexicon.separate(text, tokens)
    return Reading(text, tokens, lexicon.read(tokens))


def cut_sentences(entries: Sequence[Entry | None]) -> list[Sentence]:
    """Cut the tokens behind *entries* into sentences, with the classes in each."""
    sentence = Sentence(0, [(0, _START)])
    sentences = [sentence]
    opened, gap = 0, 0  # the token that began the last clause; what stops have added to positions
    for at, entry in enumerate(entries):
        if entry is None:
            continue
        position = at + gap
        if at - sentence.first >= SENTENCE_LIMIT:
            sentence = _open(sentences, at)
        hits = sentence.hits
        for number in entry.classes:
            hits.append((position, number))
        if entry.ends:
            gap += STOP_GAP if entry.ends is not Break.LINE else 0
            if at - sentence.first >= SENTENCE_MIN or (entry.ends is Break.PARAGRAPH and at > sentence.first):
                sentence = _open(sentences, at + 1)
            opened = at + 1
            sentence.hits.append((opened + gap, _START))
        elif entry.opens:
            hits += [(position, number) for number in phrase_classes(entries, at, entry)]
        elif entry.sign and _COLON in entry.classes and _is_name(entries, opened, at):
            hits.append((position, _ROLELINE))
    sentences[-1].last = len(entries)
    return sentences


def _open(sentences: list[Sentence], at: int) -> Sentence:
    sentences[-1].last = at
    sentences.append(Sentence(at))
    return sentences[-1]


def _is_name(entries: Sequence[Entry | None], start: int, end: int) -> bool:
    """Return whether the tokens from *start* to *end* name a speaker: `system`, `new instructions`."""
    # The length first: a text of colons alone would else be read from its beginning at every one of them.
    return 0 < end - start <= NAME_LIMIT and all(
        entry is not None and _ROLENAME in entry.classes for entry in entries[start:end]
    )
