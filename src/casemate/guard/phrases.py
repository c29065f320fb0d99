"""Finds phrases in a stream of text: whole words in order, in any case, whatever stands between them within a sentence.

Holds text back while it could still become a phrase, so that a phrase is found however the text was cut.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from casemate.guard.words import fold

GAP: Final = 3
WORD_LIMIT: Final = 64
_WORD = re.compile(r"\w+(?:'\w+)*")
_STOP = re.compile(r"[.!?\n]")

Word = tuple[int, int, str]


class Match(NamedTuple):
    """A phrase at *start*..*end* of the text, and what kind it is."""

    start: int
    end: int
    kind: str


class Seen(NamedTuple):
    """The phrases of a text, and from where on it must be held because more may follow."""

    matches: list[Match]
    hold: int


@dataclass(slots=True)
class _Node:
    """The words that may come next, and the kind of the phrase that ends here."""

    next: dict[str, _Node] = field(default_factory=dict)
    kind: str = ""


class Phrases:
    """Phrases by kind."""

    def __init__(self, kinds: Mapping[str, Iterable[str]]) -> None:
        """Look for the phrases of each kind; the first kind of a phrase counts."""
        self._root = _Node()
        for kind, phrases in kinds.items():
            for phrase in phrases:
                node = self._root
                for word in _WORD.findall(fold(phrase)):
                    node = node.next.setdefault(word, _Node())
                node.kind = node.kind or kind

    def find(self, words: Sequence[Word], text: str, until: int, without: Container[str]) -> Seen:
        """Return the longest phrases among *words* of *text* but for the kinds *without*; see `find_phrases`."""
        matches: list[Match] = []
        hold, after = until, 0
        for index, (start, end, word) in enumerate(words):
            if start >= until:
                break
            node = self._root.next.get(word)
            if node is None or start < after:
                continue
            last, is_open = _Walk(words, text, until, without).follow(node, index, end)
            if is_open:
                hold = min(hold, start)
            elif last is not None:
                matches.append(Match(start, *last))
                after = last[0]
        return Seen(matches, hold)


class _Walk(NamedTuple):
    words: Sequence[Word]
    text: str
    until: int
    without: Container[str]

    def follow(self, node: _Node, index: int, at: int) -> tuple[tuple[int, str] | None, bool]:
        """Return (where the longest phrase from *node* ends and its kind, whether it may still become longer)."""
        last: tuple[int, str] | None = None
        while True:
            if node.kind and node.kind not in self.without:
                last = (at, node.kind)
            index += 1
            if not node.next:
                return last, False
            if index >= len(self.words):
                return last, self.until < len(self.text) + 1 and _may_go_on(self.text[at:])
            start, end, word = self.words[index]
            if not _may_go_on(self.text[at:start]):
                return last, False
            if start >= self.until:
                return last, any(wanted.startswith(word) for wanted in node.next)
            if word not in node.next:
                return last, False
            node, at = node.next[word], end


def find_phrases(text: str, phrases: Sequence[Phrases], *, final: bool, without: Container[str] = ()) -> Seen:
    """Return the phrases of *text*, and from where on it must be held; unless it is *final*, its last word may go on.

    Where phrases of several of *phrases* overlap, those of the first count.
    """
    words = [(m.start(), m.end(), m.group()) for m in _WORD.finditer(fold(text))]
    until = len(text) + 2 if final else len(text)  # beyond the text: nothing is open any more
    if not final and words and words[-1][1] == len(text) and words[-1][1] - words[-1][0] <= WORD_LIMIT:
        until = words[-1][0]
    matches: list[Match] = []
    hold = min(until, len(text))
    for one in phrases:
        seen = one.find(words, text, until, without)
        hold = min(hold, seen.hold)
        matches += [m for m in seen.matches if not any(m.start < k.end and k.start < m.end for k in matches)]
    return Seen(sorted(match for match in matches if match.end <= hold), hold)


def _may_go_on(between: str) -> bool:
    return len(between) <= GAP and not _STOP.search(between)
