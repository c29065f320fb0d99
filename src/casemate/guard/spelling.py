"""The words worth recognising in disguise: enciphered, reversed, misspelt or run together.

Misspelling is looked for in the lexicon's English entries; ciphers and reversal in those of every language, by how a
word begins. A word is looked for in disguise only when it means nothing as it stands.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from typing import Final

from casemate.guard.decoders import LEET
from casemate.guard.grammar import Lexicon

ENDINGS: Final = ("", "s", "e", "d", "ed", "ing", "es", "ion", "ions")
CODED_MIN: Final = 4
HEAD: Final = 5
ENGLISH: Final = "en"
SWAPPED_MIN: Final = 5
SLIPPED_MIN: Final = 7
LONGEST: Final = 24
SEGMENT_LIMIT: Final = 2000
MEMORY_LIMIT: Final = 20_000


class _Memory(dict[str, "str | None"]):
    """Remembers what each word was corrected to; forgets all when it grows too large."""

    def __init__(self, work_out: Callable[[str], str | None]) -> None:
        super().__init__()
        self._work_out = work_out

    def __missing__(self, word: str) -> str | None:
        if len(self) >= MEMORY_LIMIT:
            self.clear()
        found = self[word] = self._work_out(word)
        return found


class Spelling:
    """Tables of disguised words, from one lexicon."""

    def __init__(self, lexicon: Lexicon, ordinary: frozenset[str]) -> None:
        """Derive the tables from the plain ASCII words and stems of *lexicon*; *ordinary* words are spelt right."""
        self._ordinary = ordinary
        words = sorted(set(_forms(lexicon.words(ENGLISH))))
        self._rot13 = frozenset(codecs.encode(word, "rot13") for word in words if len(word) >= CODED_MIN)
        self._backwards = frozenset(word[::-1] for word in words if len(word) >= CODED_MIN)
        foreign = {w.removesuffix("*") for name in lexicon.languages if name != ENGLISH for w in lexicon.words(name)}
        heads = {word[:HEAD] for word in foreign if len(word) >= HEAD and word.isalpha()}
        self._rot13_heads = frozenset(codecs.encode(head, "rot13") for head in heads if head.isascii())
        self._backward_tails = frozenset(head[::-1] for head in heads)
        self._words = frozenset(words)
        self._foreign = frozenset(word for word in foreign if len(word) >= HEAD)
        written = sorted({*words, *(word for word in lexicon.words(ENGLISH) if "'" in word)})
        self._swapped = {_letters(word): word for word in reversed(written) if len(word) >= SWAPPED_MIN}
        self._slipped = {form: word for word in reversed(words) if len(word) >= SLIPPED_MIN for form in _shorter(word)}
        self._memory = _Memory(self._work_out)

    def known(self, word: str) -> bool:
        """Return whether *word* (folded) is one of the words worth recognising."""
        return word in self._words or word in self._foreign

    def is_leet(self, token: str) -> bool:
        """Return whether *token* is a known word with digits for letters."""
        return self.known(token.translate(LEET)) or self.known(token.replace("1", "l").translate(LEET))

    def count_rot13(self, words: Iterable[str]) -> int:
        """Return how many of *words* are telling ones with the alphabet turned."""
        return sum(word in self._rot13 or word[:HEAD] in self._rot13_heads for word in words)

    def count_backwards(self, words: Iterable[str]) -> int:
        """Return how many of *words* are telling ones read from the end."""
        return sum(word in self._backwards or word[-HEAD:] in self._backward_tails for word in words)

    def corrections(self, words: Iterable[str]) -> dict[str, str]:
        """Return, for those of *words* that are misspelt (letters swapped, lost, doubled or wrong), the right words."""
        memory = self._memory
        return {word: right for word in words if (right := memory[word])}

    def segment(self, run: str) -> str:
        """Return *run* with blanks around the words it contains, longest first from the left."""
        parts: list[str] = []
        rest: list[str] = []
        at = 0
        folded = run[:SEGMENT_LIMIT].lower()
        while at < len(folded):
            word = self._longest_at(folded, at)
            if word:
                parts += ["".join(rest), word]
                rest = []
            else:
                rest.append(folded[at])
            at += len(word) or 1
        return " ".join(part for part in [*parts, "".join(rest)] if part) + run[SEGMENT_LIMIT:]

    def _longest_at(self, folded: str, at: int) -> str:
        ends = range(min(at + LONGEST, len(folded)), at + 2, -1)
        return next((folded[at:end] for end in ends if folded[at:end] in self._words), "")

    def _work_out(self, word: str) -> str | None:
        plain = word.replace("'", "")
        if (
            not SWAPPED_MIN <= len(word) <= LONGEST
            or not (plain.isascii() and plain.isalpha())
            or word in self._ordinary
        ):
            return None
        swapped = self._swapped.get(_letters(word))
        if swapped and _near_swaps(word, swapped):
            return swapped
        if len(word) < SLIPPED_MIN - 1:
            return None
        if word in self._slipped:
            return self._slipped[word]
        return next((self._slipped[form] for form in _shorter(word) if form in self._slipped), None)


def _forms(entries: Iterable[str]) -> Iterable[str]:
    for entry in entries:
        stem = entry.removesuffix("*")
        if stem.isascii() and stem.isalpha() and len(stem) > 2:  # noqa: PLR2004 - shorter ones are everywhere
            yield from (stem + ending for ending in (ENDINGS if entry.endswith("*") else ("",)))


def _letters(word: str) -> str:
    return "".join(sorted(word.replace("'", "")))


def _shorter(word: str) -> Iterable[str]:
    """Yield *word* and what is left of it without one letter (never the first)."""
    yield word
    for index in range(1, len(word)):
        yield word[:index] + word[index + 1 :]


def _near_swaps(word: str, other: str) -> bool:
    """Return whether only neighbouring letters changed places."""
    plain, right = word.replace("'", ""), other.replace("'", "")
    return all(plain[i] in right[max(0, i - 2) : i + 3] for i in range(len(plain)))
