"""Checks that decide whether characters are a value: small pure functions over bare characters (no separators)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

_LUHN_DOUBLE: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_VERHOEFF_D: Final = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 2, 3, 4, 0, 6, 7, 8, 9, 5),
    (2, 3, 4, 0, 1, 7, 8, 9, 5, 6),
    (3, 4, 0, 1, 2, 8, 9, 5, 6, 7),
    (4, 0, 1, 2, 3, 9, 5, 6, 7, 8),
    (5, 9, 8, 7, 6, 0, 4, 3, 2, 1),
    (6, 5, 9, 8, 7, 1, 0, 4, 3, 2),
    (7, 6, 5, 9, 8, 2, 1, 0, 4, 3),
    (8, 7, 6, 5, 9, 3, 2, 1, 0, 4),
    (9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
)
_VERHOEFF_P: Final = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 5, 7, 6, 2, 8, 3, 0, 9, 4),
    (5, 8, 0, 3, 7, 9, 6, 1, 4, 2),
    (8, 9, 1, 6, 0, 4, 3, 5, 2, 7),
    (9, 4, 5, 3, 1, 2, 6, 8, 7, 0),
    (4, 2, 8, 6, 5, 7, 3, 9, 0, 1),
    (2, 7, 9, 3, 8, 0, 6, 4, 1, 5),
    (7, 0, 4, 6, 9, 1, 3, 2, 5, 8),
)
_DAYS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


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


def verhoeff(digits: str) -> bool:
    """Check a Verhoeff digit (Aadhaar)."""
    check = 0
    for at, digit in enumerate(reversed(digits)):
        check = _VERHOEFF_D[check][_VERHOEFF_P[at % 8][int(digit)]]
    return check == 0


def mod11_10(digits: str) -> bool:
    """Check the last digit with ISO 7064 mod 11,10 (German tax number, Croatian OIB)."""
    product = 10
    for digit in digits[:-1]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def weighted(digits: str, weights: Sequence[int]) -> int:
    """Return the sum of digits times *weights* (shorter one decides)."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def check_mod11(digits: str, weights: Sequence[int], *, ten: int = -1) -> bool:
    """Check that the digit after the weighted ones is 11 minus the sum modulo 11 (11 is 0, 10 is *ten*)."""
    check = 11 - weighted(digits, weights) % 11
    check = {11: 0, 10: ten}.get(check, check)
    return check == int(digits[len(weights)])


def is_date(year: int, month: int, day: int) -> bool:
    """Return whether the three are a date (29 February is one in every year)."""
    return 1 <= month <= 12 and 1 <= day <= _DAYS[month - 1] and year >= 0  # noqa: PLR2004 - the calendar


def yymmdd(text: str) -> bool:
    """Return whether six digits are year, month, day."""
    return is_date(int(text[:2]), int(text[2:4]), int(text[4:6]))


def ddmmyy(text: str) -> bool:
    """Return whether six digits are day, month, year."""
    return is_date(int(text[4:6]), int(text[2:4]), int(text[:2]))


def varied(digits: str) -> bool:
    """Return whether not all characters are the same (checksums accept 000000000)."""
    return len(set(digits)) > 1


def entropy(text: str) -> float:
    """Return the Shannon entropy of *text* in bits per character."""
    if not text:
        return 0.0
    size = len(text)
    return -sum(n / size * math.log2(n / size) for n in Counter(text).values())
