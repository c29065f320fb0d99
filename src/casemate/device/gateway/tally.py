"""What the gateway counts for usage reports: sums of the last seconds, of all apps together. The agent keeps them.

It counts whether or not the owner wants reports; what nobody asked for is thrown away by the agent, and is in nothing
that is kept.
"""

from __future__ import annotations

from bisect import bisect_left

from casemate.formats import ipc
from casemate.formats.usage import LATENCY

_MOST = (1 << 31) - 1


class Tally:
    """The counts since `take` was called last."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._clear()

    def _clear(self) -> None:
        self._requests = self._refused = self._tokens = 0
        self._latency = [0] * (len(LATENCY) + 1)

    def ended(self, *, seconds: float, tokens: int, answered: bool, refused: bool) -> None:
        """Count a request that was *answered*, or that the guard *refused* or cut; any other is not counted."""
        if not answered and not refused:
            return
        self._requests += 1
        self._refused += refused
        if answered:
            self._tokens += tokens
            self._latency[bisect_left(LATENCY, seconds)] += 1

    def take(self) -> ipc.Used | None:
        """Return the counts and begin again; None when nothing happened."""
        if not self._requests:
            return None
        latency = tuple(min(each, _MOST) for each in self._latency)
        found = ipc.Used(min(self._requests, _MOST), min(self._refused, _MOST), min(self._tokens, _MOST), latency)
        self._clear()
        return found
