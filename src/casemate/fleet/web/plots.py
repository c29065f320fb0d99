"""Plots that are made on the server, as SVG without a style in it: coordinates here, looks in the sheet.

They are there with the page's first paint, without a script, and each has its numbers beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

from casemate.fleet.rollout.story import Evidence

WIDTH: Final = 460.0
HEIGHT: Final = 250.0
LEFT: Final = 10.0
RIGHT: Final = 10.0
TOP: Final = 26.0
BOTTOM: Final = 44.0
_STEPS: Final = (1, 2, 5)
_LEAST: Final = 0.8
"""Percent of a bar that one device has, however many there are: a single failure can be seen."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, in units of the drawing, and its label."""

    at: float
    label: str


@dataclasses.dataclass(frozen=True, slots=True)
class TestPlot:
    """The path of a sequential test between its bounds."""

    line: str
    last: tuple[float, float]
    upper: float
    lower: float
    zero: float
    ticks: list[Tick]
    width: float = WIDTH
    height: float = HEIGHT


def test_plot(found: Evidence) -> TestPlot:
    """Return the drawing of the test's path; the bounds are always inside."""
    most = max(20, found.path[-1].devices)
    highest = max(found.upper, *(point.ratio for point in found.path)) * 1.15
    lowest = min(found.lower, *(point.ratio for point in found.path)) * 1.3

    def x(devices: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * devices / most, 1)

    def y(ratio: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (highest - ratio) / (highest - lowest), 1)

    points = [(x(point.devices), y(point.ratio)) for point in found.path]
    return TestPlot(
        line=" ".join(f"{across},{down}" for across, down in points),
        last=points[-1],
        upper=y(found.upper),
        lower=y(found.lower),
        zero=y(0.0),
        ticks=[Tick(x(value), str(value)) for value in nice(most)],
    )


def nice(most: int, about: int = 5) -> list[int]:
    """Return round numbers from 0 to *most*, about as many as asked for."""
    size = 10 ** max(0, math.floor(math.log10(max(1, most / about))))
    step = next((size * factor for factor in (*_STEPS, 10) if most / (size * factor) <= about), size * 10)
    return list(range(0, most + 1, step))


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar: what it stands for (a class of the sheet), where it begins and how long it is, in percent."""

    kind: str
    count: int
    start: float
    length: float


def bar(counts: Sequence[tuple[str, int]], whole: int) -> list[Segment]:
    """Return the parts of a bar for *whole* things; each part that is not empty can be seen."""
    parts = [(kind, count) for kind, count in counts if count]
    total = max(whole, sum(count for _, count in parts))
    free = 100 - _LEAST * len(parts)
    found, start = [], 0.0
    for kind, count in parts:
        length = _LEAST + free * count / total
        found.append(Segment(kind, count, round(start, 2), round(length, 2)))
        start += length
    return found


def share_of_axis(value: float, low: float, high: float) -> float:
    """Return where *value* stands between *low* and *high*, in percent, on a scale of ratios; outside is the end."""
    place = 100 * (math.log(max(value, 1e-9)) - math.log(low)) / (math.log(high) - math.log(low))
    return round(min(100.0, max(0.0, place)), 1)
