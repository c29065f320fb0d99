"""Telephone numbers: international by country code, national by a word before them or by a telling grouping."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.dates import looks_like_date, looks_like_years
from casemate.guard.entities.window import Found, Window
from casemate.guard.entities.words import word_set

_EXTENSION: Final = r"(?: ?(?:x|ext\.?|#) ?\d{1,6})?"
_END: Final = r"(?!\w)(?![.,]\d)"
_INTERNATIONAL = re.compile(rf"(?<![\w+])\(?(?:\+|00) ?\(?[1-9](?:[ .\-/()]{{0,4}}\d){{5,16}}\)?{_EXTENSION}{_END}")
_LABELLED = re.compile(rf"(?<![\w.+/=#\-])(?<!\w\()\(?\d(?:[ .\-/()]{{0,4}}\d){{5,14}}{_EXTENSION}{_END}")
_NORTH_AMERICAN = re.compile(
    rf"(?<![\w.+/=#\-])(?<!\d )(?:1[ .\-])?(?:\([2-9]\d{{2}}\) ?|[2-9]\d{{2}}[ .\-])[2-9]\d{{2}}[ .\-]\d{{4}}"
    rf"{_EXTENSION}{_END}(?!-)"
)
_TRUNK_ZERO = re.compile(
    r"(?<![\w.+/=#\-])(?<!\d )(?:\(0\d{1,5}\)[ \-]?\d{2,4}(?:[ \-]?\d{2,6}){1,3}"
    r"|0(?!\d\d-\d\d-)\d{1,4}(?:[ \-./]\d{2,4}){2,4}"
    rf"|0\d{{2,4}}[ \-/]\d{{6,8}}){_END}(?!-)"
)
_CALLING_CODES: Final = word_set(
    """
    1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84
    86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236
    237 238 239 240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265
    266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378
    380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 596
    597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 808 850 852
    853 855 856 870 878 880 881 882 883 886 888 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977
    979 992 993 994 995 996 998
    """
)
UNNAMED: Final = 1001
_SHORTEST: Final = 6
_LABEL_REACH: Final = 48
_LONGEST: Final = 15


def find_phones(window: Window) -> Iterator[Found]:
    """Find telephone numbers."""
    if window.digits < _SHORTEST:
        return
    segment = window.segment
    for match in window.matches(_INTERNATIONAL) if "+" in segment or "00" in segment else ():
        if _is_international(window, match):
            yield Found(*match.span(), "pii:PHONE_NUMBER", _rank(window, match))
    for match in window.matches(_LABELLED) if window.speaks_of("phone") else ():
        near = window.near(match.start(), "phone")
        if near is not None and near <= _LABEL_REACH and _is_number(match[0]):
            yield Found(*match.span(), "pii:PHONE_NUMBER", near)
    for pattern in (_NORTH_AMERICAN, _TRUNK_ZERO):
        for match in window.matches(pattern):
            if 9 <= _digits(match[0]) <= _LONGEST and not window.denied(match.start()):  # noqa: PLR2004
                yield Found(*match.span(), "pii:PHONE_NUMBER", _rank(window, match))


def _is_number(text: str) -> bool:
    """Return whether *text* can be dialled: not too long, no date, no years, no fraction, no round amount."""
    if _digits(text) > _LONGEST or text.endswith("0000") or text.startswith("0."):
        return False
    return not looks_like_date(text) and not looks_like_years(text)


def _rank(window: Window, match: re.Match[str]) -> int:
    near = window.near(match.start(), "phone")
    return UNNAMED if near is None else near


def _is_international(window: Window, match: re.Match[str]) -> bool:
    value = match[0]
    digits = "".join(c for c in re.split(r"[x#e]", value)[0] if c.isdigit())
    plus = "+" in value
    digits = digits if plus else digits[2:]
    if not 8 <= len(digits) <= _LONGEST or not any(digits[:size] in _CALLING_CODES for size in (1, 2, 3)):  # noqa: PLR2004
        return False
    return plus or window.near(match.start(), "phone") is not None


def _digits(text: str) -> int:
    return sum(c.isdigit() for c in re.split(r"[x#e]", text)[0])
