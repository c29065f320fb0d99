"""How many threads the model gets: at most one less than the cores, and of those the number that is fastest now.

llama.cpp's threads spin at barriers. As soon as one of them has to share its core, all wait for it: two threads on two
cores beside one busy process are 5 to 18 times slower than one thread. So one core stays free, the process is bound to
the others, and a short trial picks the count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence


def candidates(cores: int) -> list[int]:
    """Return the thread counts worth trying on *cores* usable cores, best guess first."""
    most = max(1, cores - 1)
    return [count for count in (most, (most + 1) // 2) if count >= 1][: 1 if most == 1 else 2]


def bind(cores: Sequence[int]) -> list[int]:
    """Bind this process to all of *cores* but the first (interrupts and other processes like that one)."""
    chosen = sorted(cores)[1:] or list(cores)
    os.sched_setaffinity(0, chosen)
    return chosen


def fastest(
    counts: Sequence[int], speed: Callable[[int], float], *, trial_worth: float
) -> tuple[int, dict[int, float]]:
    """Return the fastest of *counts* and the tokens per second of each that was tried.

    *speed* loads and runs; when the first trial shows fewer tokens per second than *trial_worth*, the model is too
    large for a short trial to say anything and the first count is kept.
    """
    if len(counts) == 1:
        return counts[0], {}
    measured = {counts[0]: speed(counts[0])}
    if measured[counts[0]] >= trial_worth:
        measured |= {count: speed(count) for count in counts[1:]}
    return max(measured, key=lambda count: measured[count]), measured
