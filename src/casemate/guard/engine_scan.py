"""Finds the places of a text worth looking at: one pass for all evidence patterns.

Hyperscan does it when its wheel is there, else `re` pattern by pattern: slower, and no less complete. Where a place
ends never decides what becomes of a value, only whether the rules look there, so both give the same redactions.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from casemate.guard.entities.evidence import AFTER, EVIDENCE, Evidence, Role

hyperscan: Any
try:
    import hyperscan
except ImportError:  # the wheel is not there for every platform
    hyperscan = None

MOST: Final = 6
"""More places than one in this many characters: the text is dense, and is read from end to end."""


_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")
_LONGEST_THEN: Final = 16
_SHORT_REACH: Final = 96
_TIME_SIGNS: Final = frozenset("0123456789./:-TZ")
_LONGEST_TIME: Final = 32
_NEAR_TIME: Final = 3
_TIME = re.compile(
    r"(?:(?:18|19|20)\d\d[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.](?:18|19|20)\d\d)"
    r"(?:T?\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?Z?)?(?![\d./:\-\w])"
    r"|(?:18|19|20)\d\d[-/](?:(?:18|19|20)\d\d|\d\d)(?![\d./:\-\w])|0\.\d{3,}(?![\d./:\-\w])|\d\d?:\d\d(?::\d\d)?(?:\.\d{1,9})?(?![\d./:\-\w])"
)


_ANNOUNCING: Final = frozenset({Role.ANNOUNCEMENT, Role.NAME})


class Survey(NamedTuple):
    """Where to look: for each place the segment to begin with and the last one to read, as offsets, ascending.

    `names` says that a name may be among them.
    """

    places: list[tuple[int, int]]
    names: bool


class PlaceScanner(Protocol):
    """Finds places in folded text."""

    def survey(self, text: str, *, dates: bool) -> Survey | None:
        """Return where evidence is in *text*; None when there is too much of it.

        *dates* says that dates matter even where nobody speaks of a birth.
        """


class PythonScanner:
    """The fallback: every pattern with `re`."""

    def __init__(self, evidence: Sequence[Evidence] = EVIDENCE) -> None:
        self._evidence = evidence
        self._patterns = [re.compile(e.pattern, re.IGNORECASE if e.caseless else 0) for e in evidence]

    def survey(self, text: str, *, dates: bool) -> Survey | None:
        """Return where evidence is in *text*; None when there is too much of it."""
        most = len(text) // MOST + MOST
        matches: list[tuple[int, int]] = []
        for which, pattern in enumerate(self._patterns):
            for match in pattern.finditer(text):
                matches.append((match.end(), which))
                if len(matches) > most:
                    return None
        return _survey(self._evidence, text, sorted(matches), dates=dates)


class HyperscanScanner:
    """All patterns in one pass over the bytes."""

    def __init__(self, evidence: Sequence[Evidence] = EVIDENCE) -> None:
        database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        database.compile(
            expressions=[_expression(e.pattern) for e in evidence],
            ids=list(range(len(evidence))),
            elements=len(evidence),
            flags=[hyperscan.HS_FLAG_CASELESS if e.caseless else 0 for e in evidence],
        )
        self._database = database
        self._evidence = evidence
        self._scratch = threading.local()

    def survey(self, text: str, *, dates: bool) -> Survey | None:
        """Return where evidence is in *text*; None when there is too much of it."""
        data = text.encode()
        most = len(text) // MOST + MOST
        hits: set[tuple[int, int]] = set()

        def note(which: int, _start: int, end: int, _flags: int, _context: Any) -> bool | None:
            hits.add((end, which))
            return True if len(hits) > most else None

        try:
            self._database.scan(data, match_event_handler=note, scratch=self._scratch_of_thread())
        except hyperscan.ScanTerminated:
            return None
        if not hits:
            return Survey([], names=False)
        found = sorted(hits)
        ends = [end for end, _which in found]
        if len(data) != len(text):
            ends = _characters(data, ends)
        matches = [(end, which) for end, (_bytes, which) in zip(ends, found, strict=True)]
        return _survey(self._evidence, text, matches, dates=dates)

    def _scratch_of_thread(self) -> Any:
        scratch = getattr(self._scratch, "of_thread", None)
        if scratch is None:
            scratch = self._scratch.of_thread = hyperscan.Scratch(self._database)
        return scratch


def _survey(evidence: Sequence[Evidence], text: str, matches: list[tuple[int, int]], *, dates: bool) -> Survey:
    """Return the places that *matches* (end, number of the evidence) stand for."""
    roles = {evidence[which].role for _end, which in matches}
    dates = dates or Role.BIRTH in roles
    places: set[tuple[int, int]] = set()
    names = False
    scanned: dict[int, int] = {}
    for end, which in matches:
        _pattern, _caseless, then, role, then_reach = evidence[which]
        if role is Role.BIRTH or (role is Role.DATE and not dates):
            continue
        if (role is Role.COLONS or (role is Role.DIGITS and not dates)) and _is_time(text, end):
            continue
        reach = AFTER if role in _ANNOUNCING else -1
        if then is None:
            places.add((end - 1, end + reach))
            continue
        # What an earlier match has looked through is not looked through again, but for what may lie across its end.
        begin = max(end - 1, scanned.get(which, 0) - (_LONGEST_THEN if then_reach <= _SHORT_REACH else then_reach))
        ends, scanned[which] = _following(then, text, begin, end + then_reach)
        following = [(at - 1, at + reach) for at in ends]
        places.update(following)
        names = names or (bool(following) and role is Role.NAME)
    return Survey(sorted(places), names)


def _following(then: re.Pattern[str], text: str, start: int, end: int) -> tuple[list[int], int]:
    """Return the ends of what *then* finds between *start* and *end*, and how far that was looked through.

    What *then* calls `stop` ends the search.
    """
    stops = "stop" in then.groupindex
    ends: list[int] = []
    for match in then.finditer(text, start, end):
        if stops and match["stop"]:
            return ends, match.start()
        ends.append(match.end())
    return ends, end


def _is_time(text: str, end: int) -> bool:
    """Return whether the digits up to *end* are a date, a time of day, two years or a fraction, and nothing longer."""
    start = end
    while start > 0 and text[start - 1] in _TIME_SIGNS and end - start < _LONGEST_TIME:
        start -= 1
    match = _TIME.match(text, start)
    if match is None or match.end() < end:
        return False
    around = text[max(0, start - _NEAR_TIME) : start] + text[match.end() : match.end() + _NEAR_TIME]
    return not any(character.isdigit() for character in around)


def _expression(pattern: str) -> bytes:
    """Return *pattern* as Hyperscan reads it: characters instead of `re`'s escapes for them."""
    return _ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), pattern).encode()


def _characters(data: bytes, ends: list[int]) -> list[int]:
    """Turn byte offsets into offsets of characters (an offset inside one counts as after it)."""
    found: list[int] = []
    at, characters = 0, 0
    for end in ends:
        while end < len(data) and data[end] & 0xC0 == 0x80:  # noqa: PLR2004 - a continuation byte of UTF-8
            end += 1  # noqa: PLW2901 - moved to the character's end
        if end > at:
            characters += len(data[at:end].decode())
            at = end
        found.append(characters)
    return found


def best_scanner() -> PlaceScanner:
    """Return the fastest scanner this machine has."""
    return PythonScanner() if hyperscan is None else HyperscanScanner()
