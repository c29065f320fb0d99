"""What a rule sees: one segment with the text before it, and the words that say what a number may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from casemate.guard.entities.labels import NOT, REACH, Label, distance, labels_in
from casemate.guard.placeholders import PLACEHOLDER

CONTEXT: Final = 160
BLANK: Final = "\ufffc"
DENY_REACH: Final = 32
_CLAUSE_END = re.compile(r"[\n\"{}]|[!?;] |\. (?=[A-Z])")


class Found(NamedTuple):
    """A value in a window's text: half-open range, kind (`pii:EMAIL_ADDRESS`); a smaller rank wins between equals."""

    start: int
    end: int
    kind: str
    rank: int = 0


class Window:
    """The segment `text[base:]` with its left context `text[:base]`. Placeholders in the context are `BLANK`."""

    __slots__ = ("_digits", "_labels", "base", "text")

    def __init__(self, context: str, segment: str) -> None:
        if "[" in context:
            context = PLACEHOLDER.sub(lambda match: BLANK * len(match[0]), context)
        self.text = context + segment
        self.base = len(context)
        self._digits = -1
        self._labels: list[Label] | None = None

    @property
    def digits(self) -> int:
        """Return how many digits the segment has."""
        if self._digits < 0:
            self._digits = sum(map(str.isdigit, self.text[self.base :]))
        return self._digits

    @property
    def labels(self) -> list[Label]:
        """Return the words near the segment that say what a number is."""
        if self._labels is None:
            from_ = max(0, self.base - REACH)
            self._labels = [Label(label.end + from_, label.names) for label in labels_in(self.text[from_:])]
        return self._labels

    @property
    def segment(self) -> str:
        """Return the segment alone."""
        return self.text[self.base :]

    def speaks_of(self, label: str) -> bool:
        """Return whether a word of *label* is among the labels: without one, `near` finds nothing."""
        return any(label in known.names for known in self.labels)

    def before(self, at: int, reach: int) -> str:
        """Return up to *reach* characters before *at*, lower case."""
        return self.text[max(0, at - reach) : at].lower()

    def near(self, at: int, label: str) -> int | None:
        """Return how far before *at* a word of *label* stands, None when none does or a `not` stands nearer."""
        return distance(self.labels, at, label)

    def denied(self, at: int) -> bool:
        """Return whether the nearest word before *at*, in the same clause, says that a number there is no value."""
        for label in reversed(self.labels):
            if label.end <= at:
                between = self.text[label.end : at]
                return NOT in label.names and len(between) <= DENY_REACH and _CLAUSE_END.search(between) is None
        return False

    def matches(self, pattern: re.Pattern[str]) -> Iterable[re.Match[str]]:
        """Return the matches of *pattern* in the segment; look-behind sees the context."""
        return pattern.finditer(self.text, self.base)


Detector = Callable[[Window], Iterable[Found]]
