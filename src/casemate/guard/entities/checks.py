"""Checks that decide whether digits are a value: small pure functions over the bare characters (no separators)."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

_LUHN_DOUBLE: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def luhn(digits: str) -> bool:
    """Check the last digit modulo 10 (ISO/IEC 7812-1 annex B)."""
    total = 0
    for at, digit in enumerate(reversed(digits)):
        total += _LUHN_DOUBLE[int(digit)] if at % 2 else int(digit)
    return total % 10 == 0


def mod97(text: str) -> bool:
    """Check an IBAN's two check digits (ISO 13616: rearranged, letters as 10..35, remainder 1)."""
    moved = (text[4:] + text[:4]).upper()
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def entropy(text: str) -> float:
    """Return the Shannon entropy of *text* in bits per character."""
    if not text:
        return 0.0
    size = len(text)
    return -sum(n / size * math.log2(n / size) for n in Counter(text).values())
