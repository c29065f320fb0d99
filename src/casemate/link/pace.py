"""When to speak to the fleet next: pure decisions over answers and failures. Randomness comes in from outside.

A fleet that comes back after an outage must not be knocked over by its own devices: after a failure the wait is drawn
from the whole range up to a ceiling that doubles (full jitter), and what the server asks for is obeyed within bounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

FIRST_CEILING: Final = 2.0
LAST_CEILING: Final = 300.0
SHORTEST: Final = 5.0
LONGEST: Final = 3600.0
EVENTS_FIRST: Final = 1.0
"""Seconds; the wake stream comes back faster than check-ins: quarantine and wipe come over it."""
EVENTS_LAST: Final = 30.0

RETURN_LAST: Final = 60.0
"""Seconds; somebody may stand beside the device and wait for it."""


@dataclasses.dataclass
class Pace:
    """The waits of one conversation. *draw* returns a number in [0, 1)."""

    draw: Callable[[], float]
    first: float = FIRST_CEILING
    last: float = LAST_CEILING
    failures: int = 0

    def answered(self, wanted: float) -> float:
        """Return the seconds until the next turn after an answer that asked for *wanted*."""
        self.failures = 0
        return min(max(wanted, SHORTEST), LONGEST)

    def failed(self, retry_after: float = 0.0) -> float:
        """Return the seconds until the next try; never sooner than the server asked (up to `LONGEST`)."""
        self.failures += 1
        ceiling = min(self.first * 2.0 ** min(self.failures - 1, 30), self.last)
        return min(max(retry_after, 0.0), LONGEST) + self.draw() * ceiling

    def ended(self, within: float) -> float:
        """Return the seconds until a stream is opened again that the server ended and asked for *within* so many."""
        self.failures = 0
        return self.draw() * min(max(within, self.first), self.last)


def events_pace(draw: Callable[[], float]) -> Pace:
    """Return the pace of coming back to the wake stream."""
    return Pace(draw, EVENTS_FIRST, EVENTS_LAST)


def return_pace(draw: Callable[[], float]) -> Pace:
    """Return the pace of asking whether a person said yes to our return."""
    return Pace(draw, FIRST_CEILING, RETURN_LAST)


def should_renew(now: float, not_before: float, not_after: float, share: float) -> bool:
    """Whether a certificate is due: past the middle of its life, plus *share* (0 to 1) of a tenth of it as jitter.

    *now* is the server's time, which judges the certificate too; the device's clock may be years off.
    """
    life = not_after - not_before
    return now >= not_before + life * (0.5 + 0.1 * share)
