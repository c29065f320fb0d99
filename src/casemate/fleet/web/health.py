"""The fleet over time: charts, and a table that says the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.responses import Response

from casemate.fleet import trend
from casemate.fleet.trend import Trend
from casemate.fleet.web.menu import navigation
from casemate.fleet.web.visit import Visit

SPANS: Final = {"6h": "6 hours", "day": "A day", "week": "A week", "month": "A month"}
_ROWS: Final = 24
"""About how many rows a table has, whatever the span."""
_FEW_ROWS: Final = 6
"""The same of one that stands beside its chart."""


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: a field of a step, what it is called, and how it is drawn (a class of the sheet)."""

    field: str
    label: str
    look: str


@dataclasses.dataclass(frozen=True, slots=True)
class Chart:
    """A few lines over the same axis. *whole*: only whole numbers make sense."""

    name: str
    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    whole: bool = True
    per: int = 1
    """Steps that one point stands for; events are summed over more than a moment is."""


CHARTS: Final = (
    Chart(
        "devices",
        "Devices",
        (
            Line("enrolled", "enrolled", "quiet"),
            Line("online", "online", "accent"),
            Line("attested", "attested", "good"),
        ),
    ),
    Chart(
        "trouble",
        "Trouble",
        (
            Line("degraded", "degraded", "warn"),
            Line("quarantined", "in quarantine", "bad"),
            Line("alerts", "open alerts", "quiet"),
        ),
    ),
    Chart(
        "keys",
        "Keys of gated models",
        (Line("keys_granted", "granted", "good"), Line("keys_refused", "refused", "bad")),
        per=6,
    ),
    Chart(
        "machines",
        "Hottest device",
        (Line("temperature_max", "highest temperature", "warn"),),
        unit="\u202f°C",
        whole=False,
    ),
)
SPEED: Final = Chart(
    "speed",
    "First token",
    (
        Line("first_token_median", "half of the devices, at most", "accent"),
        Line("first_token_p95", "19 of 20, at most", "quiet"),
    ),
    unit="\u202fms",
    whole=False,
)
"""Drawn when a device measured it: only those do that take what rollouts give them."""


async def show(visit: Visit) -> Response:
    """Show how the fleet was over a span."""
    span = visit.field("span", 8) or "day"
    async with visit.site.fleet.store.read() as connection:
        found = await trend.over(connection, span, visit.now)
    is_timed = any(step["first_token_median"] is not None for step in found.steps)
    return visit.page(
        "health.html",
        navigation=await navigation(visit),
        spans=SPANS,
        span=span,
        steps=found.steps,
        latest=found.steps[-1] if found.steps else None,
        totals={name: sum(step[name] for step in found.steps) for name in ("keys_refused", "integrity_failures")},
        lowest=min(found.steps, key=lambda step: step["online_min"]) if found.steps else None,
        charts=[(chart, points(found, chart)) for chart in (*CHARTS, *([SPEED] if is_timed else ()))],
        rows=rows(found, _ROWS),
        speeds=rows(found, _FEW_ROWS) if is_timed else [],
    )


def points(found: Trend, chart: Chart) -> str:
    """Return what the script draws, as JSON: moments, and values with null where no server ran."""
    seconds = found.seconds * chart.per
    merged = _grouped(found, seconds)
    times = list(range(found.begin, found.end, seconds))
    values = [[merged[time][line.field] if time in merged else None for time in times] for line in chart.lines]
    drawn = {"times": times, "values": values, "whole": chart.whole, "unit": chart.unit, "steps": chart.per > 1}
    return msgspec.json.encode(drawn).decode()


def rows(found: Trend, count: int) -> list[dict[str, Any]]:
    """Return the steps in about *count* rows, newest first."""
    per_row = max(1, (found.end - found.begin) // found.seconds // count) * found.seconds
    return [{"time": time, **merged} for time, merged in sorted(_grouped(found, per_row).items(), reverse=True)]


def _grouped(found: Trend, seconds: int) -> dict[int, dict[str, Any]]:
    """Return the steps merged into steps of *seconds*, by their moments."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for step in found.steps:
        groups.setdefault(step["time"] - (step["time"] - found.begin) % seconds, []).append(step)
    return {time: _merged(steps) for time, steps in groups.items()}


def _merged(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    known = {
        name: [step[name] for step in steps if step[name] is not None] for name in ("temperature_max", *trend.SPEED)
    }
    medians = known["first_token_median"]
    return {
        **{name: round(sum(step[name] for step in steps) / len(steps), 1) for name in trend.LEVELS},
        **{name: sum(step[name] for step in steps) for name in trend.EVENTS},
        "online_min": min(step["online_min"] for step in steps),
        "temperature_max": max(known["temperature_max"], default=None),
        "first_token_median": round(sum(medians) / len(medians), 1) if medians else None,
        "first_token_p95": max(known["first_token_p95"], default=None),
    }
