"""Private-key blocks: where they begin, and where the last character of key material is.

A block runs from its header to its footer. Without a footer it ends before the first text that cannot be key material
(five plain lower-case words, or a character no armour uses); a header that is only mentioned is no key. A block that is
still open after `PEM_CAP` characters has no end: whoever streams it must stop.
"""

from __future__ import annotations

import re
from typing import Final

PEM_CAP: Final = 16384
OPEN: Final = -1
CAPPED: Final = -2
NOT_A_KEY: Final = -3
MIN_MATERIAL: Final = 40
LONGEST_HEADER: Final = 192

_ARMOUR: Final = r"(?:[A-Z0-9]{1,20} ){0,5}PRIVATE KEY(?: BLOCK)?"
_HEADER = re.compile(rf"-----BEGIN {_ARMOUR}-----|---- BEGIN {_ARMOUR} ----|PuTTY-User-Key-File-\d: ")
_HEADER_PREFIX = re.compile(r"-{4,5}(?: ?BEGIN(?: [A-Z0-9]{1,20}){0,6})?\Z")
_FOOTER = re.compile(r"-----END [A-Z0-9 ]{1,60}-----|---- END [A-Z0-9 ]{1,60} ----")
_PUTTY_FOOTER = re.compile(r"Private-MAC: [0-9a-f]{1,128}(?=[^0-9a-f])|Private-Hash: [0-9a-f]{1,128}(?=[^0-9a-f])")
_HEADER_LINE: Final = r"(?:(?<=\n)|(?<=\n ))[A-Z][A-Za-z-]{2,24}: ?[^\n]*"
_JOINED_QUOTES: Final = r"[\"'][\s+,\\]{0,8}[\"']"
_NOT_BODY: Final = r"(?:(?<=\s)[a-z]{1,20}[.,]?\s){5}|[^\x09-\x7e]|[{}$%&^~!?;<>|`\"']"
_PROSE = re.compile(f"{_HEADER_LINE}|{_JOINED_QUOTES}|(?P<prose>{_NOT_BODY})")
_LOOKAHEAD: Final = 10
_WORD = re.compile(r"[A-Za-z0-9+/=]+")


def find_header(text: str, start: int, end: int) -> re.Match[str] | None:
    """Return the first private-key header in *text* between *start* and *end*."""
    if "BEGIN" not in text[start:end] and "PuTTY" not in text[start:end]:
        return None
    return _HEADER.search(text, start, end)


def header_open(text: str, start: int, end: int) -> bool:
    """Return whether *text* up to *end* stops inside a header."""
    return _HEADER_PREFIX.search(text, max(start, end - 96), end) is not None


def block_end(text: str, header: re.Match[str], *, final: bool) -> int:
    """Return where the block after *header* ends, or `OPEN`, `CAPPED` or `NOT_A_KEY`."""
    at = header.end()
    limit = min(len(text), at + PEM_CAP)
    footer = (_PUTTY_FOOTER if header.group().startswith("PuTTY") else _FOOTER).search(text, at, limit)
    prose = _first_prose(text, at, footer.start() if footer else limit)
    if prose >= 0 and (final or footer or prose + _LOOKAHEAD < len(text)):
        end = prose
    elif footer is not None:
        end = footer.end()
    elif limit < len(text):
        return CAPPED
    elif not final:
        return OPEN
    else:
        end = limit
    return end if _material(text[at:end]) >= MIN_MATERIAL else NOT_A_KEY


def _first_prose(text: str, at: int, limit: int) -> int:
    for match in _PROSE.finditer(text, at, limit):
        if match["prose"] is not None:
            return match.start()
    return -1


def _material(body: str) -> int:
    """Return how many characters of *body* can be key material: base64 words that are not plain words."""
    return sum(len(word) for word in _WORD.findall(body) if not (word.isalpha() and word.islower()))
