"""Keeps a JSON text JSON: a number that is replaced becomes a string.

A text that begins like JSON is followed token by token only as far as needed to know whether a place is inside a
string. What stands inside one may be replaced as it is, because placeholders need no escapes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_QUOTE_OR_ESCAPE = re.compile(r'\\.|"', re.DOTALL)
_AFTER_BRACE: Final = frozenset('"}')
_AFTER_BRACKET: Final = frozenset('"{[]-0123456789tfn')
_PLAIN_VALUE = re.compile(r"[\d+\-.eE,\s]+")
_NUMBER: Final = frozenset("0123456789+-.eE")


@dataclass(slots=True)
class JsonState:
    """What is known so far: the first sign of the text, whether it is JSON, whether the place is inside a string."""

    opening: str = ""
    is_json: bool | None = None
    in_string: bool = False

    def pass_over(self, text: str, start: int, end: int) -> None:
        """Go on from *start* to *end* of *text*; every part of the text is passed once, in order."""
        while self.is_json is None and start < end:
            self._meet(text[start])
            start += self.is_json is not True
        if self.is_json:
            for token in _QUOTE_OR_ESCAPE.finditer(text, start, end):
                if token[0] == '"':
                    self.in_string = not self.in_string

    def cover(self, text: str, start: int, end: int, low: int, high: int) -> tuple[int, int, bool]:
        """Return the range to replace instead of *start*..*end*, within *low*..*high*, and whether it needs quotes."""
        if self.is_json is None:
            self._meet(text[start])
        if not self.is_json or self.in_string:
            return start, end, False
        while start > low and text[start - 1] in _NUMBER:
            start -= 1
        while end < high and text[end] in _NUMBER:
            end += 1
        return start, end, _PLAIN_VALUE.fullmatch(text, start, end) is not None

    def _meet(self, character: str) -> None:
        """Take the next character of a text whose first two signs are not both known."""
        if character.isspace():
            return
        if self.opening:
            self.is_json = character in (_AFTER_BRACE if self.opening == "{" else _AFTER_BRACKET)
        elif character in "{[":
            self.opening = character
        else:
            self.is_json = False
