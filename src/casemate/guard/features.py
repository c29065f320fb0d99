"""From sentences to features: windows of one to three sentences, and the pairs of classes in them.

Harmless context can lower a score only from inside the same window, so padding a text does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from casemate.guard.classes import CORE, FAR_BASE, NEAR_BASE, SIZE
from casemate.guard.sentences import Sentence

NEAR: Final = 5
WINDOW: Final = 3
_CORE_MASK: Final = sum(1 << number for number in CORE)


@dataclass(frozen=True, slots=True)
class Facts:
    """A sentence as features see it: its classes as a bit mask, its near pairs as feature numbers."""

    mask: int
    near: frozenset[int]


@dataclass(frozen=True, slots=True)
class Window:
    """Sentences `first` to `end` (exclusive) taken together."""

    first: int
    end: int
    mask: int
    near: frozenset[int]


def find_facts(sentences: Sequence[Sentence], wanted: bytes) -> list[Facts]:
    """Return the facts of each sentence; near pairs only where *wanted* (one byte a feature) is not zero."""
    facts: list[Facts] = []
    for sentence in sentences:
        hits = sorted(set(sentence.hits))
        mask = 0
        for _, number in hits:
            mask |= 1 << number
        facts.append(Facts(mask, frozenset(_near_pairs(hits, wanted)) if mask & _CORE_MASK else frozenset()))
    return facts


def windows_of(facts: Sequence[Facts]) -> Iterator[Window]:
    """Yield every window of one to WINDOW neighbouring sentences."""
    for first in range(len(facts)):
        mask = 0
        near: frozenset[int] = frozenset()
        for end in range(first + 1, min(first + WINDOW, len(facts)) + 1):
            mask |= facts[end - 1].mask
            near |= facts[end - 1].near
            yield Window(first, end, mask, near)


def mask_features(mask: int) -> list[int]:
    """Return the numbers of the classes in *mask* and of their far pairs."""
    present = [number for number in range(SIZE) if mask >> number & 1]
    pairs = [FAR_BASE + a * SIZE + b for i, a in enumerate(present) for b in present[i + 1 :]]
    return [*present, *pairs]


def _near_pairs(hits: Sequence[tuple[int, int]], wanted: bytes) -> Iterator[int]:
    for index, (position, number) in enumerate(hits):
        core = number in CORE
        limit = position + NEAR
        for other_position, other in hits[index + 1 :]:
            if other_position > limit:
                break
            if other_position == position or not (core or other in CORE):
                continue
            feature = NEAR_BASE + (number * SIZE + other if number < other else other * SIZE + number)
            if wanted[feature]:
                yield feature
