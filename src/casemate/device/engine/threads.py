"""How many threads the model gets: at most one less than the cores, and of those the number that is fastest now.

llama.cpp's threads spin at barriers. As soon as one of them has to share its core, all wait for it: two threads on two
cores beside one busy process are 5 to 18 times slower than one thread. So one core stays free, the process is bound to
the others, and a short trial picks the count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

Loaded = TypeVar("Loaded")

TRIAL_WORTH: Final = 60.0  # tokens per second


def candidates(most: int) -> list[int]:
    """Return the thread counts worth trying when there are *most* cores to use, best guess first."""
    return [most] if most == 1 else [most, (most + 1) // 2]


def bind(cores: Sequence[int]) -> list[int]:
    """Bind this process to all of *cores* but the first (interrupts and other processes like that one)."""
    chosen = sorted(cores)[1:] or list(cores)
    os.sched_setaffinity(0, chosen)
    return chosen


def calibrate(
    counts: Sequence[int], load: Callable[[int], Loaded], speed: Callable[[Loaded], float]
) -> tuple[int, Loaded, dict[int, float]]:
    """Return the fastest of *counts*, the model loaded with it, and the tokens per second of each that was tried.

    With one count there is nothing to try. When the first trial is slower than `TRIAL_WORTH`, the model is too large
    for a short trial to say anything, and the first count is kept.
    """
    best, model = counts[0], load(counts[0])
    if len(counts) == 1:
        return best, model, {}
    measured = {best: speed(model)}
    if measured[best] >= TRIAL_WORTH:
        for count in counts[1:]:
            other = load(count)
            measured[count] = speed(other)
            if measured[count] > measured[best]:
                best, model = count, other
    return best, model, measured
