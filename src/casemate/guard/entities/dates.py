"""Dates; those that a word calls someone's birth are dates of birth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.checks import is_date
from casemate.guard.entities.window import Found, Window
from casemate.guard.entities.words import MONTHS

_MONTH: Final = "(?:" + "|".join(sorted(MONTHS, key=lambda m: (-len(m), m))) + ")"
_NUMERIC = re.compile(r"(?<![\w.\-/])(\d{1,4})([./\-])(\d{1,2})\2(\d{1,4})(?![\w\-/])(?!\.\d)")
_SPACED = re.compile(r"(?<![\w.\-/])(\d{1,2}) (\d{1,2}) ((?:18|19|20)\d{2})(?![\w\-/])(?!\.\d)")
_COMPACT = re.compile(r"(?<![\w.\-/])(?:18|19|20)\d{6}(?![\w\-/])")
_WORDED = re.compile(
    rf"(?<![\w.\-/])(?:\d{{1,2}}(?:st|nd|rd|th|\.|\u00ba)?[ \-](?:(?:of|de|del|di) )?{_MONTH}\.?,?[ \-]"
    r"(?:(?:de|del|of) )?\d{4}"
    rf"|{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}"
    r"|\d{4}[\u5e74\ub144] ?\d{1,2}[\u6708\uc6d4] ?\d{1,2}[\u65e5\uc77c])(?!\w*\d)",
    re.IGNORECASE,
)
_YEARS = re.compile(r"(?:18|19|20)\d\d[\-/](?:(?:18|19|20)\d\d|\d\d)")
_FULL_YEAR: Final = 4
_BIRTH_REACH: Final = 48


def find_dates(window: Window) -> Iterator[Found]:
    """Find dates: `DATE_OF_BIRTH` after a word for birth, else `DATE_TIME`."""
    if window.digits < 4:  # noqa: PLR2004 - 1/2/99
        return
    segment = window.segment
    for match in window.matches(_NUMERIC):
        near = window.near(match.start(), "birth")
        full = _FULL_YEAR in (len(match[1]), len(match[4]))
        if _numeric(match[1], match[3], match[4]) and (full or near is not None):
            yield _found(match, near)
    if not segment.isascii() or segment.lower() != segment.upper():
        for match in window.matches(_WORDED):
            yield _found(match, window.near(match.start(), "birth"))
    if window.speaks_of("birth"):
        yield from _birth_dates(window)


def _birth_dates(window: Window) -> Iterator[Found]:
    """Find what is a date only because somebody speaks of a birth."""
    for match in window.matches(_SPACED):
        near = window.near(match.start(), "birth")
        if near is not None and _numeric(*match.groups()):
            yield _found(match, near)
    for match in window.matches(_COMPACT):
        near = window.near(match.start(), "birth")
        if near is not None and is_date(int(match[0][:4]), int(match[0][4:6]), int(match[0][6:])):
            yield _found(match, near)


def looks_like_years(text: str) -> bool:
    """Return whether all of *text* is two years: `2016-2017`, `2016/17`."""
    return _YEARS.fullmatch(text) is not None


def looks_like_date(text: str) -> bool:
    """Return whether all of *text* is a date in digits."""
    match = _NUMERIC.fullmatch(text) or _SPACED.fullmatch(text)
    if match is None:
        return False
    parts = [part for part in match.groups() if part.isdigit()]
    return _numeric(*parts)


def _found(match: re.Match[str], near: int | None) -> Found:
    if near is not None and near <= _BIRTH_REACH:
        return Found(*match.span(), "pii:DATE_OF_BIRTH", near)
    return Found(*match.span(), "pii:DATE_TIME", 999)


def _numeric(first: str, second: str, third: str) -> bool:
    """Return whether three groups of digits are year-month-day, day-month-year or month-day-year."""
    if len(first) == _FULL_YEAR:
        return 1800 <= int(first) <= 2199 and is_date(int(first), int(second), int(third))  # noqa: PLR2004
    if len(first) > 2 or len(third) not in (2, 4):  # noqa: PLR2004
        return False
    year, one, two = int(third), int(first), int(second)
    if len(third) == _FULL_YEAR and not 1800 <= year <= 2199:  # noqa: PLR2004
        return False
    return is_date(year, two, one) or is_date(year, one, two)
