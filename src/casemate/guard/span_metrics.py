"""How good redaction is on labelled values: shares with intervals, pure like `metrics`.

A value is found when at least `COVER` of its characters are replaced, whatever it is taken for; a find that touches no
value is a false one. Kinds that are words rather than forms (names, places, bare days and years among the dates) are
counted apart: rules find them only where something introduces them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from casemate.guard.metrics import NORMAL_95, RESAMPLES, Rate, wilson

COVER: Final = 0.95
WORDED: Final = frozenset(
    {"PERSON", "ADDRESS", "STREET_ADDRESS", "LOCATION", "GPE", "ORGANIZATION", "TITLE", "AGE", "NRP"}
)
_SEED: Final = 20240601


@dataclass(frozen=True, slots=True)
class Value:
    """A labelled or found value: half-open range in code points, type as the batch form spells it."""

    start: int
    end: int
    type: str

    @property
    def is_secret(self) -> bool:
        """Return whether the type is a secret's (`github-pat`) and not personal data's (`EMAIL_ADDRESS`)."""
        return self.type.upper() != self.type


@dataclass(frozen=True, slots=True)
class Redacted:
    """One labelled text after redaction."""

    wanted: tuple[Value, ...]
    found: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """What came of one text: values found and missed, finds that were none."""

    found: int
    missed: int
    false: int


def count(row: Redacted, *, counts: Callable[[Value], bool]) -> Counted:
    """Count the values of *row* for which *counts* is true."""
    wanted = [value for value in row.wanted if counts(value)]
    covered = sum(_covered(value, row.found) for value in wanted)
    false = sum(counts(find) and not any(_touch(find, value) for value in row.wanted) for find in row.found)
    return Counted(covered, len(wanted) - covered, false)


def is_patterned(value: Value) -> bool:
    """Return whether *value* is personal data that has a form."""
    return not value.is_secret and value.type not in WORDED


def is_worded(value: Value) -> bool:
    """Return whether *value* is personal data in plain words."""
    return value.type in WORDED


def is_secret(value: Value) -> bool:
    """Return whether *value* is a secret."""
    return value.is_secret


def recall(rows: Iterable[Counted]) -> Rate:
    """Return the share of values that were found."""
    counted = [*rows]
    found = sum(row.found for row in counted)
    return wilson(found, found + sum(row.missed for row in counted))


def f2(rows: Sequence[Counted]) -> Rate:
    """Return F2 (recall counts twice as much as precision) with a bootstrap interval over the texts."""
    values = sum(row.found + row.missed for row in rows)
    if not values:
        return Rate(0.0, 0.0, 1.0, 0)
    draw = random.Random(_SEED)  # noqa: S311 - resampling, not secrets
    scores = sorted(_f2(draw.choices(rows, k=len(rows))) for _ in range(RESAMPLES))
    return Rate(_f2(rows), scores[int(0.025 * RESAMPLES)], scores[int(0.975 * RESAMPLES) - 1], values)


def cut(rows: Iterable[Counted]) -> Rate:
    """Return the share of texts without values of which something was cut."""
    harmless = [row for row in rows if not row.found + row.missed]
    return wilson(sum(row.false > 0 for row in harmless), len(harmless))


def quantile(ordered: Sequence[float], share: float) -> Rate:
    """Return a quantile of *ordered* numbers with the interval that their order alone gives."""
    size = len(ordered)
    if not size:
        return Rate(0.0, 0.0, 0.0, 0)
    spread = NORMAL_95 * (size * share * (1 - share)) ** 0.5
    low, at, high = (min(size - 1, max(0, int(size * share + move))) for move in (-spread, 0.0, spread))
    return Rate(ordered[at], ordered[low], ordered[high], size)


def _f2(rows: Iterable[Counted]) -> float:
    found = missed = false = 0
    for row in rows:
        found, missed, false = found + row.found, missed + row.missed, false + row.false
    return 5 * found / (5 * found + 4 * missed + false) if found else 0.0


def _covered(value: Value, found: Iterable[Value]) -> bool:
    places = {at for find in found for at in range(max(find.start, value.start), min(find.end, value.end))}
    return len(places) >= COVER * (value.end - value.start)


def _touch(one: Value, other: Value) -> bool:
    return one.start < other.end and other.start < one.end
