"""Finds the places of a text worth looking at: one pass for all evidence patterns.

Hyperscan does it when its wheel is there, else `re` pattern by pattern: slower, and no less complete. Where a place
ends never decides what becomes of a value, only whether the rules look there, so both give the same redactions.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from casemate.guard.entities.evidence import EVIDENCE, THEN_REACH, Evidence

hyperscan: Any
try:
    import hyperscan
except ImportError:  # the wheel is not there for every platform
    hyperscan = None

MOST: Final = 24
"""More places than one in this many characters: the text is dense, and is read from end to end."""


class PlaceScanner(Protocol):
    """Finds places in folded text."""

    def places(self, text: str) -> list[int] | None:
        """Return the end offsets of evidence in *text*, ascending; None when there is too much of it."""


class PythonScanner:
    """The fallback: every pattern with `re`."""

    def __init__(self, evidence: Sequence[Evidence] = EVIDENCE) -> None:
        self._evidence = evidence
        self._patterns = [re.compile(e.pattern, re.IGNORECASE if e.caseless else 0) for e in evidence]

    def places(self, text: str) -> list[int] | None:
        """Return the end offsets of evidence in *text*, ascending; None when there is too much of it."""
        most = len(text) // MOST + MOST
        ends: set[int] = set()
        for evidence, pattern in zip(self._evidence, self._patterns, strict=True):
            for match in pattern.finditer(text):
                ends.update(_places_of(evidence, text, match.end()))
                if len(ends) > most:
                    return None
        return sorted(ends)


class HyperscanScanner:
    """All patterns in one pass over the bytes."""

    def __init__(self, evidence: Sequence[Evidence] = EVIDENCE) -> None:
        database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        database.compile(
            expressions=[e.pattern.encode() for e in evidence],
            ids=list(range(len(evidence))),
            elements=len(evidence),
            flags=[hyperscan.HS_FLAG_CASELESS if e.caseless else 0 for e in evidence],
        )
        self._database = database
        self._evidence = evidence
        self._scratch = threading.local()

    def places(self, text: str) -> list[int] | None:
        """Return the end offsets of evidence in *text*, ascending; None when there is too much of it."""
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
            return []
        found = sorted(hits)
        ends = [end for end, _which in found]
        if len(data) != len(text):
            ends = _characters(data, ends)
        places: set[int] = set()
        for end, (_bytes, which) in zip(ends, found, strict=True):
            places.update(_places_of(self._evidence[which], text, end))
        return sorted(places)

    def _scratch_of_thread(self) -> Any:
        scratch = getattr(self._scratch, "of_thread", None)
        if scratch is None:
            scratch = self._scratch.of_thread = hyperscan.Scratch(self._database)
        return scratch


def _places_of(evidence: Evidence, text: str, end: int) -> Iterator[int]:
    """Return the places that a match ending at *end* stands for."""
    if evidence.then is None:
        yield end
    else:
        yield from (match.end() for match in evidence.then.finditer(text, end, end + THEN_REACH))


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
