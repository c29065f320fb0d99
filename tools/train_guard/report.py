"""Leave one source out: what a model that never saw a source makes of it, at the threshold that ships."""

from __future__ import annotations

import numpy as np
from tools.train_guard.fit import Fitter
from tools.train_guard.rows import Row

from casemate.guard.metrics import Rate, wilson


def left_out(fitter: Fitter, rows: list[Row], seen: np.ndarray, mine: np.ndarray, block: float) -> list[str]:
    """Return one line per real source among the rows *mine*: its recall and false alarms when it was left out."""
    sources = np.array([row.source for row in rows])
    lines = []
    for source in sorted(set(sources[mine]) - {row.source for row in rows if row.source.startswith("gen-")}):
        best = fitter.bag.best(*fitter.fit(seen[sources[seen] != source]))
        blocked = best >= block
        for label, word in ((1, "recall"), (0, "false alarms")):
            cell = mine & (sources == source) & (fitter.labels == label)
            if cell.any():
                lines.append(f"  {source:20} {word:12} {shown(wilson(int(blocked[cell].sum()), int(cell.sum())))}")
    return lines


def shown(rate: Rate) -> str:
    """Return a rate as a person reads it."""
    if not rate.enough:
        return f"insufficient (n={rate.count})"
    return f"{rate.value:.1%} ({rate.low:.1%}-{rate.high:.1%}, n={rate.count})"
