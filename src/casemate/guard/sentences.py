"""From words to sentences: which classes of meaning stand where.

Positions count words over the whole text; a stop adds a gap, so that words of different sentences are never close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from casemate.guard.classes import NUMBER
from casemate.guard.grammar import Lexicon
from casemate.guard.words import fold, split_words

SENTENCE_LIMIT: Final = 40
SENTENCE_MIN: Final = 3
STOP_GAP: Final = 6

_START: Final = NUMBER["START"]
_QUESTION: Final = NUMBER["QUESTION"]
_COLON: Final = NUMBER["COLON"]
_ROLENAME: Final = NUMBER["ROLENAME"]
_ROLELINE: Final = NUMBER["ROLELINE"]
_SIGN_CLASSES: Final = {
    **dict.fromkeys('"`\u00ab\u00bb\u201e\u201c\u201d\u300c\u300d\u300e\u300f', "QUOTED"),
    **dict.fromkeys((":", "\uff1a"), "COLON"),
    **dict.fromkeys(('"""', "}}", "-", "=", "#", "*", "~", "<<<", ">"), "RULER"),
    **dict.fromkeys(("<", "["), "TAG"),
    "@": "AT",
    "!": "IMAGE",
}
_SIGNS: Final = {sign: NUMBER[name] for sign, name in _SIGN_CLASSES.items()}
_LINK: Final = NUMBER["LINK"]
_QUESTIONS: Final = frozenset("?\uff1f\u061f")
_STOPS: Final = frozenset(".!?\n\u3002\uff01\uff1f\u061f\u0964\u2026\u055e")


@dataclass(slots=True)
class Sentence:
    """What stands in one sentence: class hits by word position, and the token range it covers."""

    hits: list[tuple[int, int]] = field(default_factory=list)  # (position, class)
    words: int = 0
    first: int = 0
    last: int = 0


def tokens_of(text: str, lexicon: Lexicon) -> list[str]:
    """Return the words and signs of the normalised *text*."""
    words = split_words(fold(text))
    return words if text.isascii() else lexicon.separate(words)


def read_sentences(tokens: Sequence[str], lexicon: Lexicon) -> list[Sentence]:
    """Cut *tokens* into sentences and find the classes in each."""
    reader = _Reader()
    look_up = lexicon.look_up
    for at, token in enumerate(tokens):
        if not token[0].isalnum():
            reader.sign(at, token)
            continue
        sentence = reader.word(at)
        if token.startswith("http"):
            sentence.hits.append((reader.position, _LINK))
        entry = look_up(token)
        if entry is None:
            reader.named = False
            continue
        position = reader.position
        sentence.hits += [(position, number) for number in entry.classes]
        if entry.opens:
            sentence.hits += [(position, number) for number in lexicon.phrases(entry, tokens, at)]
        reader.named = reader.named and _ROLENAME in entry.classes
    reader.sentences[-1].last = len(tokens)
    return reader.sentences


class _Reader:
    """Where the reading is: the sentence, the position, and whether a line begins with a speaker's name."""

    def __init__(self) -> None:
        self.sentences = [Sentence()]
        self.position = 0
        self.fresh = True
        self.named = True

    def word(self, at: int) -> Sentence:
        """Step over a word and return the sentence it belongs to."""
        sentence = self.sentences[-1]
        if sentence.words >= SENTENCE_LIMIT:
            sentence = self._next(at)
        if self.fresh:
            sentence.hits.append((self.position, _START))
            self.fresh = False
        self.position += 1
        sentence.words += 1
        return sentence

    def sign(self, at: int, token: str) -> None:
        """Step over a sign: a stop ends the sentence, the others are hits."""
        sentence, first = self.sentences[-1], token[0]
        if first in _STOPS and token[-1] != "(":
            if first in _QUESTIONS:
                sentence.hits.append((self.position, _QUESTION))
            self.position += 1 if first == "\n" else STOP_GAP
            self.fresh = self.named = True
            if sentence.words >= SENTENCE_MIN:
                self._next(at + 1)
            return
        number = _SIGNS.get(token, _SIGNS.get(first))
        if number is None:
            return
        sentence.hits.append((self.position, number))
        if number == _COLON and self.named and not self.fresh:
            sentence.hits.append((self.position, _ROLELINE))
        self.named = self.named and (self.fresh or number != _COLON)

    def _next(self, at: int) -> Sentence:
        self.sentences[-1].last = at
        self.sentences.append(Sentence(first=at))
        return self.sentences[-1]
