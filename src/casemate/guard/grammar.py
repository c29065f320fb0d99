"""The intent grammar's lexicon: words and phrases of many languages, sorted into classes of meaning.

A class is what a word does in an attack or in its harmless twin (`OVERRIDE`, `INSTRUCTION`, `DISCUSS`...), so what is
learnt about classes holds for every language and for sentences nobody has seen. The lexicon is text: one class a line,
`CLASS: word | stem* | a whole phrase | (tell/show) (me/us) all`; a lone `*` inside a phrase stands for any word.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from casemate.errors import UntrustedDataError
from casemate.guard.words import fold, split_words

PHRASE_LIMIT: Final = 8
CHOICE_LIMIT: Final = 4096
ENGLISH: Final = "en"
MEMORY_LIMIT: Final = 20_000
RESIDUE: Final = 4  # characters of an unspaced script that count as one word

_CHOICE = re.compile(r"\(([^()]*)\)")
_DROPPED_APOSTROPHE = re.compile(r"[a-z]+n't|you'(?:re|ve)|i'(?:m|ve)|what's")
_ARABIC_MARKS = re.compile("[\u064b-\u065f\u0670\u0640]")
_UNSPACED: Final = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
STOPS: Final = frozenset(".!?\n\u3002\uff01\uff1f\u061f\u0964\u2026\u055e")
QUESTIONS: Final = frozenset("?\uff1f\u061f")
SIGNS: Final = {
    **dict.fromkeys('"`\u00ab\u00bb\u201e\u201c\u201d\u300c\u300d\u300e\u300f', "QUOTED"),
    **dict.fromkeys((":", "\uff1a"), "COLON"),
    **dict.fromkeys(('"""', "}}", "-", "=", "#", "*", "~", "<<<", ">"), "RULER"),
    **dict.fromkeys(("<", "["), "TAG"),
    "@": "AT",
    "!": "IMAGE",
    "?": "QUESTION",
    "http": "LINK",
}
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")


class Break(IntEnum):
    """What a token does to the sentence it ends."""

    NONE = 0
    LINE = 1
    STOP = 2
    PARAGRAPH = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """What one token means: its classes, the patterns by which it takes part in phrases, and whether it is a stop.

    `continued` are the patterns that may follow in a phrase it opens; `wild` says that any word may.
    """

    classes: tuple[int, ...]
    patterns: tuple[int, ...] = ()
    opens: tuple[_Node, ...] = ()
    continued: frozenset[int] = frozenset()
    wild: bool = False
    ends: Break = Break.NONE
    sign: bool = False


@dataclass(slots=True)
class _Node:
    """A state of the phrase automaton: the classes of the phrase that ends here, and where the next words lead."""

    classes: tuple[int, ...] = ()
    next: dict[int, _Node] = field(default_factory=dict)
    any: _Node | None = None


class _Memory(dict[str, "Entry | None"]):
    """Remembers what each token means; asks *work_out* once per token, and forgets all when it grows too large."""

    def __init__(self, work_out: Callable[[str], Entry | None]) -> None:
        super().__init__()
        self._work_out = work_out

    def __missing__(self, token: str) -> Entry | None:
        if len(self) >= MEMORY_LIMIT:
            self.clear()
        found = self[token] = self._work_out(token)
        return found


class Lexicon:
    """Finds classes in words. Built once; `look_up` remembers what it has worked out, within a bound."""

    def __init__(self, languages: Mapping[str, str], classes: Sequence[str], english: Iterable[str] = ()) -> None:
        """Compile the lexicon texts of all *languages*; *classes* fixes the numbering.

        What is written like one of the *english* words means, by itself, only what it means in English.

        Raises:
            UntrustedDataError: a line is not `CLASS: entries` or names an unknown class.

        """
        self._number = {name: index for index, name in enumerate(classes)}
        self._exact: dict[str, int] = {}
        self._stems: dict[str, int] = {}
        self._single: dict[int, tuple[int, ...]] = {}
        self._single_english: dict[int, tuple[int, ...]] = {}
        self._english = frozenset(english)
        self._root = _Node()
        self._written: dict[str, list[str]] = {}
        for language in sorted(languages):
            for name, phrase in parse_entries(languages[language]):
                self._add(self._class(name, language), phrase, language)
                self._written.setdefault(language, []).append(phrase)
        self._stem_lengths = sorted({len(stem) for stem in self._stems}, reverse=True)
        unspaced = sorted((w for w in self._exact if _HAS_UNSPACED.search(w)), key=lambda word: (-len(word), word))
        self._unspaced = re.compile("|".join(map(re.escape, unspaced)) or r"(?!)")
        self._signs = {sign: self._number[name] for sign, name in SIGNS.items() if name in self._number}
        self._memory = _Memory(self._work_out)

    def look_up(self, word: str) -> Entry | None:
        """Return what *word* (folded) means, None when it means nothing here."""
        return self._memory[word]

    def read(self, tokens: Iterable[str]) -> list[Entry | None]:
        """Return what each of *tokens* means."""
        return list(map(self._memory.__getitem__, tokens))

    @property
    def languages(self) -> list[str]:
        """Return the languages that have entries."""
        return [*self._written]

    def words(self, language: str) -> list[str]:
        """Return the words (stems with their `*`) in the entries of *language*, phrases cut."""
        return [word for phrase in self._written.get(language, ()) for word in fold(phrase).split()]

    def separate(self, text: str, words: list[str]) -> list[str]:
        """Return the *words* of *text* with runs of unspaced scripts cut at the entries they contain."""
        if not _HAS_UNSPACED.search(text):
            return words
        separated: list[str] = []
        for word in words:
            if _HAS_UNSPACED.search(word):
                separated += self._cut(word)
            else:
                separated.append(word)
        return separated

    def _class(self, name: str, language: str) -> int:
        try:
            return self._number[name]
        except KeyError:
            raise UntrustedDataError(f"lexicon {language}: unknown class {name!r}", check="guard-lexicon") from None

    def _add(self, number: int, phrase: str, language: str) -> None:
        parts = [part for part in fold(phrase).split() if part]
        words = [piece for part in parts for piece in _pattern_words(part)]
        if len(words) == 1:
            pattern = self._pattern(words[0])
            for table in (self._single, self._single_english) if language == ENGLISH else (self._single,):
                table[pattern] = tuple(dict.fromkeys((*table.get(pattern, ()), number)))
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
        number = table.setdefault(key, len(self._exact) + len(self._stems))
        if _DROPPED_APOSTROPHE.fullmatch(key):
            table.setdefault(key.replace("'", ""), number)
        return number

    def _work_out(self, word: str) -> Entry | None:
        if not word[0].isalnum():
            return self._sign(word)
        found = self._patterns_of(word)
        if not found and not word.isascii():
            found = self._patterns_of(_ARABIC_MARKS.sub("", word))
        if not found and "'" in word:
            found = self._patterns_of(_elided(word))
        link = (self._signs["http"],) if word.startswith("http") and "http" in self._signs else ()
        if not found and not link:
            return None
        single = self._single_english if word in self._english else self._single
        classes = tuple(dict.fromkeys((*link, *(c for pattern in found for c in single.get(pattern, ())))))
        opens = tuple(self._root.next[pattern] for pattern in found if pattern in self._root.next)
        continued = frozenset(pattern for node in opens for pattern in node.next)
        return Entry(classes, found, opens, continued, wild=any(node.any for node in opens))

    def _sign(self, token: str) -> Entry | None:
        """Return what a token without letters means: a stop, or a telling sign."""
        first = token[0]
        if first in STOPS and token[-1] != "(":
            ends = Break.STOP if first != "\n" else Break.LINE if len(token) == 1 else Break.PARAGRAPH
            question = (self._signs["?"],) if first in QUESTIONS and "?" in self._signs else ()
            return Entry(question, ends=ends, sign=True)
        number = self._signs.get(token, self._signs.get(first))
        return None if number is None else Entry((number,), sign=True)

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


def _elided(word: str) -> str:
    """Return what follows the article or pronoun of `l'assistant`; nothing when too little does."""
    rest = word.rpartition("'")[2]
    return rest if len(rest) > 2 else ""  # noqa: PLR2004 - "'s", "'ve" and "'re" are no words


def phrase_classes(entries: Sequence[Entry | None], at: int, opener: Entry) -> list[int]:
    """Return the classes of every phrase that *opener*, the entry at *at*, begins."""
    following = entries[at + 1] if at + 1 < len(entries) else None
    if not opener.wild and (following is None or opener.continued.isdisjoint(following.patterns)):
        return []
    found: list[int] = []
    states: Sequence[_Node] = opener.opens
    for entry in entries[at + 1 : at + PHRASE_LIMIT]:
        reached = [state.any for state in states if state.any]
        if entry is not None:
            reached += [state.next[p] for state in states for p in entry.patterns if p in state.next]
        states = reached
        if not states:
            break
        for state in states:
            found += state.classes
    return found


def _residue(text: str) -> list[str]:
    return [text[i : i + RESIDUE] for i in range(0, len(text), RESIDUE)]


def _pattern_words(part: str) -> list[str]:
    """Cut one written part of an entry the way a text is cut; a trailing `*` stays with the last piece."""
    if part == "*":
        return ["*"]
    stem = part.endswith("*")
    words = split_words(part.rstrip("*"))
    return [*words[:-1], words[-1] + "*"] if stem and words else words


def parse_entries(text: str) -> Iterable[tuple[str, str]]:
    """Yield (class, phrase) of every entry of a word list: `CLASS: entries`, one or more lines a class.

    Raises:
        UntrustedDataError: a line without a class, or an entry with too many choices.

    """
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, entries = line.partition(":")
        if not colon:
            raise UntrustedDataError(f"lexicon line without a class: {line[:40]!r}", check="guard-lexicon")
        for entry in entries.split("|"):
            if entry.strip():
                yield from ((name.strip(), phrase) for phrase in _choices(entry.strip()))


def _choices(entry: str) -> Iterable[str]:
    """Yield every phrase an entry with choices in brackets stands for."""
    parts = [part.split("/") if index % 2 else [part] for index, part in enumerate(_CHOICE.split(entry))]
    if math.prod(map(len, parts)) > CHOICE_LIMIT:
        raise UntrustedDataError(f"lexicon entry with too many choices: {entry[:40]!r}", check="guard-lexicon")
    return (" ".join("".join(chosen).split()) for chosen in itertools.product(*parts))
