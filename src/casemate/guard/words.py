"""Words: one folded spelling (lower case, no accents), and the cut of a text into words and telling signs.

Folding keeps the length, so a word's place in the folded text is its place in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

_LONGEST_SIGN: Final = 80
_ARABIC: Final = "\u064b-\u065f\u0670"
_INDIC: Final = "\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963\u0981-\u0983\u09bc-\u09d7\u0b82-\u0bd7"
_THAI: Final = "\u0e31-\u0e4e"
_MARKS: Final = f"{_ARABIC}{_INDIC}{_THAI}"
_SIGNS: Final = (
    rf"!\[[^\]\n]{{0,{_LONGEST_SIGN}}}\]\("  # a markdown image
    r"|[.](?=[\s\"')\]]|$)|[!?]+|\n+"  # stops
    r"|[-=#*~]{4,}|\"{3}|<{3,}|>{3,}|\}\}"  # rulers
    r"|[:\"`@]|<[|/]?[a-z]+|\[/?inst"
)
_LINK: Final = r"https?://[^\s)\]>\"']{1,400}"
_STOPS: Final = "\u3002\uff01\uff1f\u061f\u0964\u2026\u055e"
_QUOTES: Final = "\u00ab\u00bb\u201e\u201c\u201d\u300c\u300d\u300e\u300f\uff1a"
_ASCII_TOKEN = re.compile(rf"{_LINK}|[a-z0-9]+(?:'[a-z]+)*|{_SIGNS}")
_TOKEN = re.compile(rf"{_LINK}|[\w{_MARKS}]+(?:'[\w{_MARKS}]+)*|{_SIGNS}|[{_STOPS}]+|[{_QUOTES}]")

_ALIKE: Final = {
    "_": " ",
    "\u2018\u2019\u02bc": "'",
    "\u0130\u0131": "i",
    "\u00df": "s",
    "\u00f8": "o",
    "\u0142": "l",
    "\u0111": "d",
    "\u00e6": "a",
    "\u0153": "o",
    "\u0451": "\u0435",
    "\u0491": "\u0433",
    "\u0623\u0625\u0622\u0671": "\u0627",
    "\u0649\u0626\u06cc": "\u064a",
    "\u0629": "\u0647",
    "\u0624": "\u0648",
    "\u06a9": "\u0643",
}
_ACCENTED: Final = ((0xC0, 0x250), (0x370, 0x400), (0x1E00, 0x2000))


def _folding() -> dict[int, str]:
    """Build the table that drops accents of Latin and Greek letters and unifies others, one character for one."""
    table = {ord(letter): plain for letters, plain in _ALIKE.items() for letter in letters}
    for low, high in _ACCENTED:
        for code in range(low, high):
            base = unicodedata.normalize("NFKD", chr(code).lower())[0]
            if base != chr(code):
                table.setdefault(code, base)
    return table


_FOLDING: Final = _folding()
_FOLDED: Final = frozenset(map(chr, _FOLDING))


def fold(text: str) -> str:
    """Return *text* in lower case without accents; the same length, so offsets stay."""
    folded = text.replace("\u0130", "i").lower().replace("_", " ")
    if folded.isascii() or _FOLDED.isdisjoint(folded):
        return folded
    return folded.translate(_FOLDING)


def split_words(folded: str) -> list[str]:
    """Return the words and signs of a folded text, in order. Scripts without blanks come as whole runs."""
    return (_ASCII_TOKEN if folded.isascii() else _TOKEN).findall(folded)


def word_spans(folded: str) -> Iterator[tuple[int, int]]:
    """Yield where the words and signs that `split_words` returns stand."""
    return (match.span() for match in (_ASCII_TOKEN if folded.isascii() else _TOKEN).finditer(folded))
