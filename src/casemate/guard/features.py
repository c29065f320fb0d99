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
CORE_MASK: Final = sum(1 << number for number in CORE)
NONE: Final[frozenset[int]] = frozenset()


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
        mask = 0
        for _, number in sentence.hits:
            mask |= 1 << number
        facts.append(Facts(mask, _near_pairs(sentence.hits, wanted) if mask & CORE_MASK else NONE))
    return facts


def windows_of(facts: Sequence[Facts]) -> Iterator[Window]:
    """Yield every window of one to WINDOW sentences that begins and ends with a sentence of weight.

    What can only lower a score never makes a better window, so sentences without core classes stand between, not at
    the edges.
    """
    telling = [index for index, fact in enumerate(facts) if fact.mask & CORE_MASK]
    for first in telling:
        mask, near = facts[first].mask, facts[first].near
        yield Window(first, first + 1, mask, near)
        for end in range(first + 2, min(first + WINDOW, len(facts)) + 1):
            fact = facts[end - 1]
            mask |= fact.mask
            if fact.mask & CORE_MASK:
                near |= fact.near
                yield Window(first, end, mask, near)


def mask_features(mask: int) -> list[int]:
    """Return the numbers of the classes in *mask* and of their far pairs."""
    present = [number for number in range(SIZE) if mask >> number & 1]
    pairs = [FAR_BASE + a * SIZE + b for i, a in enumerate(present) for b in present[i + 1 :]]
    return [*present, *pairs]


def _near_pairs(hits: Sequence[tuple[int, int]], wanted: bytes) -> frozenset[int]:
    """Return the wanted pairs of classes within NEAR positions of each other; *hits* are in order of position."""
    found: set[int] = set()
    recent: list[tuple[int, int]] = []
    for position, number in hits:
        limit = position - NEAR
        if recent and recent[0][0] < limit:
            recent = [hit for hit in recent if hit[0] >= limit]
        for other_position, other in recent:
            if other_position != position:
                pair = number * SIZE + other if number < other else other * SIZE + number
                if wanted[NEAR_BASE + pair]:
                    found.add(NEAR_BASE + pair)
        recent.append((position, number))
    return frozenset(found)
