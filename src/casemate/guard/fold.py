r"""The view that detection reads: one ASCII spelling per character, and the way back to the original's offsets.

Unlike `normalize`, which sees a whole text, this works character by character (and escape by escape), so a text folds
to the same view however it was cut into chunks. Full-width and other compatibility forms become ASCII, digits of any
script become ASCII digits, dashes and spaces become one dash and one space, characters nobody can see vanish, and the
escapes of JSON strings (`\u0040`, `\n`, `\"`) are read as what they stand for. Letters of other scripts stay.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|([nrtbf"\\/]))')
_SPECIAL = re.compile(r"[^\n\x20-\x5b\x5d-\x7e]")
_OPEN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_ESCAPED: Final = {"n": "\n", "r": "\n", "t": " ", "b": "", "f": " ", '"': '"', "\\": "\\", "/": "/"}
_GONE_CATEGORIES: Final = frozenset({"Cf", "Cc", "Mn", "Me"})
_DASHES: Final = "\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\ufe58\ufe63\uff0d\u00ad"
_QUOTES: Final = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ab": '"', "\u00bb": '"'}
_INVISIBLE: Final = frozenset("\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u2800\u3164\uffa0")
_REPLACEMENT: Final = "\ufffd"
_FEW: Final = 16
"""Up to so many different characters are replaced one after the other, which is faster than `str.translate`."""


class _Table(dict[int, str]):
    """`str.translate` asks for each character once; the answer is worked out then and kept."""

    def __init__(self) -> None:
        super().__init__({code: chr(code) for code in range(32, 127)})
        self.update({9: " ", 10: "\n", 11: "\n", 12: "\n", 13: " "})
        self.uneven: set[str] = {"\\"}

    def __missing__(self, code: int) -> str:
        folded = _fold_character(chr(code))
        if len(folded) != 1:
            self.uneven.add(chr(code))
        self[code] = folded
        return folded


def _fold_character(character: str) -> str:
    if character in _INVISIBLE:
        return ""
    if character in _DASHES:
        return "-"
    if character in _QUOTES:
        return _QUOTES[character]
    category = unicodedata.category(character)
    if category == "Cs":
        return _REPLACEMENT
    if category in ("Zl", "Zp") or character == "\u0085":
        return "\n"
    if category == "Zs":
        return " "
    if category in _GONE_CATEGORIES:
        return ""
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    return plain if plain.isascii() and plain.isprintable() and plain else character


_TABLE: Final = _Table()


@dataclass(slots=True)
class View:
    """A folded text. `starts`/`ends` give, per folded character, its range in the original (None: same offsets)."""

    text: str = ""
    starts: list[int] | None = None
    ends: list[int] | None = field(default=None)

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the original half-open range behind the folded range *start*..*end* (not empty)."""
        if self.starts is None or self.ends is None:
            return start, end
        return self.starts[start], self.ends[end - 1]

    def starting(self, at: int) -> int:
        """Return the original offset of what follows the first *at* folded characters (invisible ones go before)."""
        if self.starts is None or self.ends is None:
            return at
        if at < len(self.starts):
            return self.starts[at]
        return self.ends[-1] if self.ends else 0

    def dropped(self, at: int, original: int) -> View:
        """Return the view without its first *at* characters, which stand for *original* characters of the text."""
        if self.starts is None or self.ends is None:
            return View(self.text[at:])
        return View(self.text[at:], [s - original for s in self.starts[at:]], [e - original for e in self.ends[at:]])


def fold(text: str) -> View:
    """Return the folded view of *text*, which must not end inside an escape (see `open_escape`)."""
    special = set(_SPECIAL.findall(text))
    if not special:
        return View(text)
    changing = [character for character in special if _TABLE[ord(character)] != character]
    uneven = _TABLE.uneven & special
    if uneven:
        return _fold_uneven(text, uneven)
    if len(changing) > _FEW:
        return View(text.translate(_TABLE))
    for character in changing:
        text = text.replace(character, _TABLE[ord(character)])
    return View(text)


def _fold_uneven(text: str, uneven: set[str]) -> View:
    """Fold a text in which the characters *uneven* vanish, grow or begin escapes; keep a range per character."""
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for match in re.finditer(f"[{re.escape(''.join(sorted(uneven)))}]", text):
        place = match.start()
        if place < at:
            continue
        parts.append(text[at:place].translate(_TABLE))
        starts.extend(range(at, place))
        ends.extend(range(at + 1, place + 1))
        folded, at = _fold_at(text, place)
        parts.append(folded)
        starts.extend([place] * len(folded))
        ends.extend([at] * len(folded))
    parts.append(text[at:].translate(_TABLE))
    starts.extend(range(at, len(text)))
    ends.extend(range(at + 1, len(text) + 1))
    return View("".join(parts), starts, ends)


def _fold_at(text: str, at: int) -> tuple[str, int]:
    """Return what the character or escape at *at* folds to, and where it ends."""
    escape = _ESCAPE.match(text, at) if text[at] == "\\" else None
    if escape is None:
        return _TABLE[ord(text[at])], at + 1
    code, letter = escape.groups()
    return _TABLE[int(code, 16)] if code else _ESCAPED[letter], escape.end()


def open_escape(text: str) -> int:
    """Return how many characters at the end of *text* may be the beginning of an escape: 0 to 5."""
    tail = _OPEN_ESCAPE.search(text, max(0, len(text) - 5))
    if tail is None:
        return 0
    slashes = 0
    at = tail.start()
    while at - slashes > 0 and text[at - slashes - 1] == "\\":
        slashes += 1
    return 0 if slashes % 2 else len(text) - at


def join(first: View, first_length: int, second: View) -> View:
    """Return the view of two texts one after the other; *first_length* is the first original's length."""
    if first.starts is None and second.starts is None and len(first.text) == first_length:
        return View(first.text + second.text)
    starts = [*_or_same(first.starts, first.text), *(first_length + at for at in _or_same(second.starts, second.text))]
    ends = [*_or_next(first.ends, first.text), *(first_length + at for at in _or_next(second.ends, second.text))]
    return View(first.text + second.text, starts, ends)


def _or_same(offsets: list[int] | None, text: str) -> Sequence[int]:
    return range(len(text)) if offsets is None else offsets


def _or_next(offsets: list[int] | None, text: str) -> Sequence[int]:
    return range(1, len(text) + 1) if offsets is None else offsets
