"""Places as numbers: coordinates, and postcodes after a word that says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.window import Found, Window

_PAIR = re.compile(r"(?<![\w.\-])(-?\d{1,2}\.\d{3,12}) ?[,;/ ] ?(-?\d{1,3}\.\d{3,12})(?![\w]|\.\d)")
_DEGREES = re.compile(
    r"(?<![\w.])\d{1,3}\u00b0 ?\d{1,2}['\u2032] ?(?:\d{1,2}(?:\.\d{1,6})?(?:\"|''|\u2033) ?)?[NSEWO](?![\w])"
    r"|(?<![\w.])\d{1,3}\.\d{2,8}\u00b0 ?[NSEWO](?!\w)"
)
_SINGLE = re.compile(r"(?<![\w.])-?\d{1,3}\.\d{3,12}(?![\w]|\.\d)")
_POSTCODE = re.compile(
    r"(?<![\w\-])(?:\d{5}-\d{3,4}|\d{4} ?[A-Z]{2}|[A-Z]\d[A-Z] ?\d[A-Z]\d|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|\d{2}-\d{3}"
    r"|\d{3}[ \-]\d{2}"
    r"|\d{3}-\d{4}|\d{3,7})(?![\w\-])"
)
_LEADS_TO_CODE = re.compile(
    r"(?:\W{0,4}(?:code|number|no|nr|is|was|ist|est|es|lautet|do|postal|codigo|c\u00f3digo)\b){0,3}\W{0,4}",
    re.IGNORECASE,
)
_LABEL_REACH: Final = 24
_AWAY_FROM_ZERO: Final = 5
_TELLING: Final = 4
_LATITUDE: Final = 90
_LONGITUDE: Final = 180


def find_places(window: Window) -> Iterator[Found]:
    """Find coordinates and labelled postcodes."""
    if window.digits < 3:  # noqa: PLR2004 - the shortest postcode
        return
    segment = window.segment
    if "." in segment or "\u00b0" in segment:
        yield from _coordinates(window)
    for match in window.matches(_POSTCODE) if window.speaks_of("zip") else ():
        near = window.near(match.start(), "zip")
        if (
            near is not None
            and near <= _LABEL_REACH
            and _LEADS_TO_CODE.fullmatch(window.text, match.start() - near, match.start())
        ):
            yield Found(*match.span(), "pii:ZIP_CODE", near)


def _coordinates(window: Window) -> Iterator[Found]:
    for match in window.matches(_PAIR):
        one, two = match.groups()
        near = window.near(match.start(), "gps")
        if abs(float(one)) > _LATITUDE or abs(float(two)) > _LONGITUDE:
            continue
        if near is not None or _is_telling(one, two, match[0]):
            yield Found(*match.span(), "pii:COORDINATES")
    for match in window.matches(_DEGREES):
        yield Found(*match.span(), "pii:COORDINATES")
    for match in window.matches(_SINGLE):
        near = window.near(match.start(), "gps")
        if near is not None and near <= _LABEL_REACH and abs(float(match[0])) <= _LONGITUDE:
            yield Found(*match.span(), "pii:COORDINATES", near)


def _is_telling(one: str, two: str, pair: str) -> bool:
    """Return whether two decimals are coordinates even where nobody says so: precise, with a comma, not near zero."""
    decimals = min(len(one.partition(".")[2]), len(two.partition(".")[2]))
    return (
        decimals >= _TELLING
        and ("," in pair or ";" in pair)
        and max(abs(float(one)), abs(float(two))) >= _AWAY_FROM_ZERO
    )
