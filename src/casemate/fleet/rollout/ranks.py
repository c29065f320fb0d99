"""Has a release made devices slower or larger? A one-sided Mann-Whitney test against the control group.

Ranks need no assumption about the shape of latencies, and one stuck device cannot carry a verdict. With thousands of
devices any difference is significant, so a verdict also needs a difference that matters.

    H. B. Mann, D. R. Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger", 1947
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Final

LEAST: Final = 8
"""Fewer values on a side say nothing (the normal approximation is off below)."""
MATTERS: Final = 1.15
"""How much larger the median must be."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """*p*: how likely ranks this high are by chance. *ratio*: of the medians, treated to control."""

    p: float
    ratio: float

    def worse(self, alpha: float) -> bool:
        """Say whether the treated group is worse, with a chance of *alpha* to say so wrongly."""
        return self.p <= alpha and self.ratio >= MATTERS


def compare(treated: Sequence[float], control: Sequence[float]) -> Comparison | None:
    """Compare two groups of one number per device; None when either has fewer than `LEAST`."""
    n, m = len(treated), len(control)
    if min(n, m) < LEAST:
        return None
    middle = statistics.median(control)
    ratio = statistics.median(treated) / middle if middle > 0 else math.inf
    u, ties = _u_statistic(treated, control)
    total = n + m
    spread = math.sqrt(n * m / 12 * (total + 1 - ties / (total * (total - 1))))
    if spread == 0:
        return Comparison(1.0, 1.0)
    z = (u - n * m / 2 - 0.5) / spread
    return Comparison(0.5 * math.erfc(z / math.sqrt(2)), ratio)


def _u_statistic(treated: Sequence[float], control: Sequence[float]) -> tuple[float, float]:
    """Return U of *treated* and the tie correction, the sum of t^3 - t over groups of equal values."""
    rows = sorted([(value, True) for value in treated] + [(value, False) for value in control])
    ranks, before, ties = 0.0, 0, 0.0
    for _, same in itertools.groupby(rows, key=lambda row: row[0]):
        group = [is_treated for _, is_treated in same]
        size = len(group)
        ranks += sum(group) * (before + (size + 1) / 2)
        ties += size**3 - size
        before += size
    n = len(treated)
    return ranks - n * (n + 1) / 2, ties
