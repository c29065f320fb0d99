"""What a rule sees: one segment with the text before it, and the words that say what a number may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from casemate.guard.placeholders import PLACEHOLDER

CONTEXT: Final = 160


class Found(NamedTuple):
    """A value in a window's text: half-open range and kind (`pii:EMAIL_ADDRESS`)."""

    start: int
    end: int
    kind: str


class Window:
    """The segment `text[base:]` with its left context `text[:base]`. Placeholders in the context are blank."""

    __slots__ = ("base", "text")

    def __init__(self, context: str, segment: str) -> None:
        if "[" in context:
            context = PLACEHOLDER.sub(lambda match: " " * len(match[0]), context)
        self.text = context + segment
        self.base = len(context)

    def before(self, at: int, reach: int) -> str:
        """Return up to *reach* characters before *at*, lower case."""
        return self.text[max(0, at - reach) : at].lower()

    def matches(self, pattern: re.Pattern[str]) -> Iterable[re.Match[str]]:
        """Return the matches of *pattern* in the segment; look-behind sees the context."""
        return pattern.finditer(self.text, self.base)


Detector = Callable[[Window], Iterable[Found]]
