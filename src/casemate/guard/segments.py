"""Where a text may be cut so that no value lies across the cut: the reason streams and whole texts agree.

Redaction works segment by segment. A segment is usually one word; it is longer where a value may continue over a gap
(digit groups, an IBAN in fours, `name [at] host`, a date in words, a PEM block). `next_cut` decides from the text up to
the cut and at most a few characters after it, so a stream reaches the same cuts as a whole text, only later. Both then
run the same rules on the same segments with the same left context: equal output for any chunking needs no further
argument.

A run without any gap is cut by force after `WINDOW` characters (`redact` overlaps such windows).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from casemate.guard.entities import pem
from casemate.guard.entities.words import DATE_LINKS, MARKER_PREFIXES, MARKERS, MONTH_STARTS, is_month

WINDOW: Final = 2048
SLACK: Final = 64
MAX_GAP: Final = 16
UNDECIDED: Final = -1
CAPPED: Final = -2

# Scripts written without spaces (Thai to Khmer, kana, han, hangul): a cut may fall between any two of their characters.
_UNSPACED: Final = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_CANDIDATE = re.compile(
    rf"\s{{1,{MAX_GAP}}}(?=\S)|\s{{{MAX_GAP + 1}}}|(?<=[{_UNSPACED}])(?=[{_UNSPACED}])"
    r'|(?<=",)(?=\S)|(?<=":)(?=[^\s:])'
)
_RIGHT: Final = 12
_LEFT: Final = 64
_DAY_REACH: Final = 16
MONTH_START: Final = 3
_IBAN_SO_FAR = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?: [A-Za-z0-9]{4}){0,8}\Z")
_DAY_BEFORE = re.compile(r"(?<!\d)\d{1,2}(?:st|nd|rd|th|\.)?(?: (?:of|de|del|di))?\Z")
_MONTH_DAY = re.compile(r"([A-Za-z\u00c0-\u017f]{3,12})\.? \d{1,2}(?:st|nd|rd|th)?,?\Z")


class Cut(NamedTuple):
    """Where the segment ends (or `UNDECIDED`, `CAPPED`) and where to look on from when more text has come."""

    end: int
    scan: int
    forced: bool = False


def next_cut(text: str, start: int, scan: int, *, final: bool) -> Cut:
    """Return the end of the segment of *text* that begins at *start*; *scan* comes from the last undecided answer.

    *final* says that the text ends here. A forced cut is `start + WINDOW`.
    """
    limit = start + WINDOW
    for candidate in _CANDIDATE.finditer(text, max(start, scan)):
        end, right = candidate.span()
        if end == start:
            scan = right
            continue
        block = _key_block(text, start, end, final=final)
        if block is not None:
            return block
        if end > limit:
            return Cut(limit, limit, forced=True)
        joined = _joined(text, start, end, right, final=final)
        if joined is None:
            return Cut(UNDECIDED, end)
        if not joined:
            return Cut(end, end)
        scan = right
    return _cut_without_gap(text, start, scan, final=final)


def _cut_without_gap(text: str, start: int, scan: int, *, final: bool) -> Cut:
    """Return the cut when no gap from *scan* on can be one."""
    block = _key_block(text, start, len(text), final=final)
    if block is not None:
        return block
    limit = start + WINDOW
    if len(text) > (limit if final else limit + SLACK):
        return Cut(limit, limit, forced=True)
    if final:
        return Cut(len(text), len(text))
    resume = len(text)
    while resume > scan and text[resume - 1].isspace():
        resume -= 1
    return Cut(UNDECIDED, max(scan, min(resume, len(text) - 1)))


def _key_block(text: str, start: int, end: int, *, final: bool) -> Cut | None:
    """Return the cut after a private-key block that begins in this segment, if there is one."""
    header = pem.find_header(text, start, min(end, start + WINDOW))
    if header is None:
        return None
    close = pem.block_end(text, header, final=final)
    if close == pem.NOT_A_KEY:
        return None
    if close == pem.OPEN:
        return Cut(UNDECIDED, start)
    return Cut(CAPPED, header.end() + pem.PEM_CAP) if close == pem.CAPPED else Cut(close, close)


def _joined(text: str, start: int, end: int, right: int, *, final: bool) -> bool | None:
    """Return whether a value may go on over the gap *end*..*right*; None when more text is needed to tell."""
    gap = text[end:right]
    if not gap or len(gap) > MAX_GAP or text[end - 1].isspace():
        return False
    if pem.header_open(text, start, end):
        return True
    if "\n" in gap or len(gap) > 3:  # noqa: PLR2004 - a value's groups stand closer than that
        return False
    before, after = text[end - 1], text[right]
    if after.isdigit():
        return _joins_digit(text, start, end, before)
    ahead = text[right : right + _RIGHT]
    complete = final or len(ahead) == _RIGHT or any(c.isspace() for c in ahead)
    word = ahead.split(None, 1)[0]
    if before.isdigit() and (after in "(-/." or after.isupper()):
        if after in "(-/.":
            return True
        if _IBAN_SO_FAR.search(text, max(start, end - _LEFT), end):
            return True
    return _joins_word(text, start, end, word, complete=complete)


def _joins_digit(text: str, start: int, end: int, before: str) -> bool:
    if before.isdigit() or before == ")":
        return True
    if before in "-/.(+":
        return end - 2 >= start and (text[end - 2].isdigit() or text[end - 2].isspace())
    last = _last_word(text, start, end)
    if before == ",":
        month = _MONTH_DAY.search(text, max(start, end - _LEFT), end)
        return month is not None and is_month(month[1])
    if len(last) <= 4 and last.isupper():  # noqa: PLR2004 - GB12, AB 12 34 56 C, IBAN groups
        return True
    return is_month(last) or last.lower() in DATE_LINKS or last.lower() in MARKERS


def _joins_word(text: str, start: int, end: int, word: str, *, complete: bool) -> bool | None:
    """Decide for a word on the right; the first way of going on that says yes, or asks for more text, wins."""
    last = _last_word(text, start, end).lower()
    lower = word.lower()
    for way in (_joins_letter, _joins_marker):
        answer = way(last, lower, complete=complete)
        if answer is not False:
            return answer
    if last in MARKERS and end - len(last) > start:
        return True
    if _DAY_BEFORE.search(text, max(start, end - _DAY_REACH), end):
        return _joins_month(lower, complete=complete)
    return _joins_link(lower, complete=complete) if is_month(last) else False


def _joins_letter(last: str, word: str, *, complete: bool) -> bool | None:
    """Join letters standing alone: `b o b @ x . o r g`."""
    if len(last) != 1 or not last.isalnum() or len(word) != 1:
        return False
    return True if complete else None


def _joins_marker(_last: str, word: str, *, complete: bool) -> bool | None:
    """Join a written `@` or `.`: `bob [at] example dot org`."""
    if word in MARKERS:
        return True if complete else None
    return None if not complete and word in MARKER_PREFIXES else False


def _joins_month(word: str, *, complete: bool) -> bool | None:
    """Join a month after a day: `25 December`, `25 de diciembre`."""
    if word[:3] in MONTH_STARTS:
        return True
    if word in DATE_LINKS:
        return True if complete else None
    return None if not complete and len(word) < MONTH_START else False


def _joins_link(word: str, *, complete: bool) -> bool | None:
    """Join a link after a month: `diciembre de 2004`."""
    if word in DATE_LINKS:
        return True if complete else None
    return None if not complete and any(link.startswith(word) for link in DATE_LINKS) else False


def _last_word(text: str, start: int, end: int) -> str:
    return text[max(start, end - _LEFT) : end].rsplit(None, 1)[-1]
