"""The intent grammar's lexicon: words and phrases of many languages, sorted into classes of meaning.

A class is what a word does in an attack or in its harmless twin (`OVERRIDE`, `INSTRUCTION`, `DISCUSS`...), so what is
learnt about classes holds for every language and for sentences nobody has seen. The lexicon is text: one class a line,
`CLASS: word | stem* | a whole phrase`; a lone `*` inside a phrase stands for any word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from casemate.errors import UntrustedDataError
from casemate.guard.words import fold, split_words

PHRASE_LIMIT: Final = 8
MEMORY_LIMIT: Final = 20_000
RESIDUE: Final = 4  # characters of an unspaced script that count as one word

_ARABIC_MARKS = re.compile("[\u064b-\u065f\u0670\u0640]")
_UNSPACED: Final = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """What one word means: its classes, and the patterns by which it can take part in a phrase."""

    classes: tuple[int, ...]
    patterns: tuple[int, ...]
    opens: tuple[_Node, ...]


@dataclass(slots=True)
class _Node:
    """A state of the phrase automaton: the classes of the phrase that ends here, and where the next words lead."""

    classes: tuple[int, ...] = ()
    next: dict[int, _Node] = field(default_factory=dict)
    any: _Node | None = None


class Lexicon:
    """Finds classes in words. Built once; `look_up` remembers what it has worked out, within a bound."""

    def __init__(self, languages: Mapping[str, str], classes: Sequence[str]) -> None:
        """Compile the lexicon texts of all *languages*; *classes* fixes the numbering.

        Raises:
            UntrustedDataError: a line is not `CLASS: entries` or names an unknown class.

        """
        self._number = {name: index for index, name in enumerate(classes)}
        self._exact: dict[str, int] = {}
        self._stems: dict[str, int] = {}
        self._single: dict[int, tuple[int, ...]] = {}
        self._root = _Node()
        for language in sorted(languages):
            for name, phrase in _parse(languages[language]):
                self._add(self._class(name, language), phrase)
        self._stem_lengths = sorted({len(stem) for stem in self._stems}, reverse=True)
        unspaced = sorted((w for w in self._exact if _HAS_UNSPACED.search(w)), key=lambda word: (-len(word), word))
        self._unspaced = re.compile("|".join(map(re.escape, unspaced)) or r"(?!)")
        self._memory: dict[str, Entry | None] = {}

    def look_up(self, word: str) -> Entry | None:
        """Return what *word* (folded) means, None when it means nothing here."""
        try:
            return self._memory[word]
        except KeyError:
            if len(self._memory) >= MEMORY_LIMIT:
                self._memory.clear()
            found = self._memory[word] = self._work_out(word)
            return found

    def separate(self, words: list[str]) -> list[str]:
        """Return *words* with runs of unspaced scripts cut at the entries they contain."""
        separated: list[str] = []
        for word in words:
            if _HAS_UNSPACED.search(word):
                separated += self._cut(word)
            else:
                separated.append(word)
        return separated

    def phrases(self, entry: Entry, words: Sequence[str], at: int) -> Iterator[int]:
        """Yield the classes of every phrase that begins with *entry* at *at*."""
        states = list(entry.opens)
        for word in words[at + 1 : at + PHRASE_LIMIT]:
            for state in states:
                yield from state.classes
            following = self.look_up(word)
            reached = [state.any for state in states if state.any]
            if following:
                reached += [state.next[p] for state in states for p in following.patterns if p in state.next]
            states = reached
            if not states:
                return
        for state in states:
            yield from state.classes

    def _class(self, name: str, language: str) -> int:
        try:
            return self._number[name]
        except KeyError:
            raise UntrustedDataError(f"lexicon {language}: unknown class {name!r}", check="guard-lexicon") from None

    def _add(self, number: int, phrase: str) -> None:
        parts = [part for part in fold(phrase).split() if part]
        words = [piece for part in parts for piece in _pattern_words(part)]
        if len(words) == 1:
            pattern = self._pattern(words[0])
            self._single[pattern] = tuple(dict.fromkeys((*self._single.get(pattern, ()), number)))
            return
        node = self._root
        for word in words[:PHRASE_LIMIT]:
            if word == "*":
                node.any = node.any or _Node()
                node = node.any
            else:
                node = node.next.setdefault(self._pattern(word), _Node())
        node.classes = tuple(dict.fromkeys((*node.classes, number)))

    def _pattern(self, word: str) -> int:
        table, key = (self._stems, word[:-1]) if word.endswith("*") else (self._exact, word)
        return table.setdefault(key, len(self._exact) + len(self._stems))

    def _work_out(self, word: str) -> Entry | None:
        found = self._patterns_of(word)
        if not found and not word.isascii():
            found = self._patterns_of(_ARABIC_MARKS.sub("", word))
        if not found and "'" in word:
            found = self._patterns_of(word.rpartition("'")[2])
        if not found:
            return None
        classes = tuple(dict.fromkeys(c for pattern in found for c in self._single.get(pattern, ())))
        opens = tuple(self._root.next[pattern] for pattern in found if pattern in self._root.next)
        return Entry(classes, found, opens)

    def _patterns_of(self, word: str) -> tuple[int, ...]:
        found = [self._exact[word]] if word in self._exact else []
        found += [self._stems[word[:n]] for n in self._stem_lengths if word[:n] in self._stems]
        return tuple(dict.fromkeys(found))

    def _cut(self, run: str) -> list[str]:
        pieces: list[str] = []
        for part in _UNSPACED_RUN.findall(run):
            if not _HAS_UNSPACED.match(part):
                pieces.append(part)
                continue
            at = 0
            for match in self._unspaced.finditer(part):
                pieces += _residue(part[at : match.start()])
                pieces.append(match.group())
                at = match.end()
            pieces += _residue(part[at:])
        return pieces


def _residue(text: str) -> list[str]:
    return [text[i : i + RESIDUE] for i in range(0, len(text), RESIDUE)]


def _pattern_words(part: str) -> list[str]:
    """Cut one written part of an entry the way a text is cut; a trailing `*` stays with the last piece."""
    if part == "*":
        return ["*"]
    stem = part.endswith("*")
    words = split_words(part.rstrip("*"))
    return [*words[:-1], words[-1] + "*"] if stem and words else words


def _parse(text: str) -> Iterable[tuple[str, str]]:
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, entries = line.partition(":")
        if not colon:
            raise UntrustedDataError(f"lexicon line without a class: {line[:40]!r}", check="guard-lexicon")
        for entry in entries.split("|"):
            if entry.strip():
                yield name.strip(), entry.strip()
