"""`casemate guard eval FILE`: how well the guard judges labelled texts: its goals, then by kind, language and source.

Files whose rows have spans instead of labels measure redaction (`guard_eval_spans`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from casemate.cli.guard_eval_spans import described, holds_values, latency, read_values, shown
from casemate.cli.guard_eval_spans import measure as measure_values
from casemate.cli.output import emit, json_option, progress, table
from casemate.errors import UntrustedDataError
from casemate.guard.metrics import Judged, Rate, f2, false_alarms, precision, recall, recall_at

FIELDS: Final = ("kind", "lang", "channel", "source")
REDACTION_HEADER: Final = ("redaction", "measure", "share (95 % interval)")
HEADER: Final = ("cell", "texts", "recall", "recall at 1 %", "precision", "F2", "false alarms")
_MEASURES: Final[tuple[tuple[str, Callable[[Sequence[Judged]], Rate]], ...]] = (
    ("recall", recall),
    ("recall_at_1_percent", recall_at),
    ("precision", precision),
    ("f2", f2),
    ("false_alarms", false_alarms),
)


@click.command("eval")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.option("--plain", multiple=True, metavar="SOURCE",
              help="A source whose attacks in documents are plain requests: they get a line of their own.")  # fmt: skip
@json_option
def command(*, file: tuple[Path, ...], plain: tuple[str, ...], as_json: bool) -> None:
    """Judge labelled rows and measure.

    A row is {"text","label"} (1 attack, 0 harmless) or, for redaction, {"text","spans"} with {"start","end","type"} for
    every value; and, if known, "channel", "kind" (direct, indirect, jailbreak, benign, benign-hard), "lang", "source".
    Several FILEs count as one set. Rates come with 95 % intervals; a cell with fewer than 50 texts or values says
    `insufficient`.
    """
    from casemate.cli.guard_goals import goals_table, measure_goals

    valued = [path for path in file if holds_values(path)]
    rows = [row for path in file if path not in valued for row in read_labelled(path)]
    values = [row for path in valued for row in read_values(path)]
    judged = judge_rows(rows)
    goals = measure_goals(rows, [one.blocked for one in judged], plain) if rows else []
    cells = [("all", judged), *by_field(rows, judged)] if rows else []
    measured = [(name, members, {key: measure(members) for key, measure in _MEASURES}) for name, members in cells]
    redaction = [*measure_values(values), *latency([r["text"] for r in rows] or [v.text for v in values])]
    parts = (
        goals_table(goals) if goals else "",
        table([shown(found) for found in redaction], REDACTION_HEADER) if redaction else "",
        _table(measured) if measured else "",
    )
    emit(
        {
            "goals": [one.as_dict() for one in goals],
            "redaction": [described(found) for found in redaction],
            "cells": [_object(*cell) for cell in measured],
        },
        as_json=as_json,
        text="\n\n".join(part for part in parts if part),
    )


def read_labelled(path: Path) -> list[dict[str, Any]]:
    """Return the labelled rows of a JSON-lines file.

    Raises:
        UntrustedDataError: a line is not a labelled row.

    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().rstrip(b"\n").split(b"\n"), 1):
        try:
            row = json.loads(line)
            rows.append({**row, "text": str(row["text"]), "label": int(row["label"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UntrustedDataError(
                f"{path}:{number} is not a labelled row",
                check="labelled-row",
                hint='one JSON object a line with at least "text" and "label" (1 attack, 0 harmless)',
            ) from None
    return rows


def judge_rows(rows: Sequence[dict[str, Any]]) -> list[Judged]:
    """Return the guard's decision on every row, under the default policy."""
    from casemate.guard import Action, Channel, Guard, GuardPolicy

    guard, policy = Guard.default(), GuardPolicy()
    judged: list[Judged] = []
    with progress(sum(len(row["text"]) for row in rows), "judging") as advance:
        for row in rows:
            verdict = guard.injection(row["text"], Channel(row.get("channel", "user")), policy)
            judged.append(Judged(row["label"], verdict.score, verdict.action is Action.BLOCK))
            advance(len(row["text"]))
    return judged


def by_field(rows: Sequence[dict[str, Any]], judged: Sequence[Judged]) -> Iterable[tuple[str, list[Judged]]]:
    """Yield (cell name, its texts) for every value of every field the rows have."""
    for field in FIELDS:
        values = sorted({str(row[field]) for row in rows if field in row})
        for value in values:
            yield f"{field} {value}", [j for row, j in zip(rows, judged, strict=True) if str(row.get(field)) == value]


def _object(name: str, members: Sequence[Judged], rates: dict[str, Rate]) -> dict[str, Any]:
    attacks = sum(row.label for row in members)
    described = {key: _rate(rate) for key, rate in rates.items()}
    return {"cell": name, "attacks": attacks, "harmless": len(members) - attacks, **described}


def _rate(rate: Rate) -> dict[str, Any] | None:
    if not rate.enough:
        return None
    return {"value": round(rate.value, 4), "low": round(rate.low, 4), "high": round(rate.high, 4), "n": rate.count}


def _table(measured: Sequence[tuple[str, Sequence[Judged], dict[str, Rate]]]) -> str:
    rows = [(name, str(len(members)), *(_shown(rate) for rate in rates.values())) for name, members, rates in measured]
    return table(rows, HEADER)


def _shown(rate: Rate) -> str:
    if rate.count == 0:
        return "-"
    return f"{rate.value:.1%} ({rate.low:.1%}-{rate.high:.1%})" if rate.enough else f"insufficient (n={rate.count})"
