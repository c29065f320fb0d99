"""Values written one character at a time (`4 1 1 1 ...`, `b o b @ x . o r g`): read without the gaps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.find import find_all
from casemate.guard.entities.window import Found, Window

_SPACED = re.compile(r"(?<!\S)[\"'<(\[{]?((?:\S {1,3}){5,400}\S)[\"'>)\]},;:!?.]?(?!\S)")
_SHORTEST: Final = 11
"""Six characters and the gaps between them."""
FAR: Final = 950


def find_spaced(window: Window) -> Iterator[Found]:
    """Find the values of the segment's runs of single characters."""
    if len(window.text) - window.base < _SHORTEST:
        return
    for run in window.matches(_SPACED):
        places = [at for at in range(*run.span(1)) if window.text[at] != " "]
        closed = Window(window.text[: run.start(1)], run[1].replace(" ", ""))
        for found in find_all(closed):
            start, end = found.start - closed.base, found.end - closed.base
            if start >= 0:
                yield Found(places[start], places[end - 1] + 1, found.kind, found.rank + FAR)
