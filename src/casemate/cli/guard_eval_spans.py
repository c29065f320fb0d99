"""The part of `casemate guard eval` about redaction: rows with labelled values instead of a label.

A file of such rows is about personal data or about secrets, whichever most of its values are: that tells what a text
without values must keep.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from casemate.cli.output import progress
from casemate.errors import UntrustedDataError
from casemate.guard.metrics import Rate
from casemate.guard.span_metrics import (
    Counted,
    Redacted,
    Value,
    count,
    cut,
    f2,
    is_patterned,
    is_secret,
    is_worded,
    quantile,
    recall,
)

PERSONAL: Final = "personal data"
SECRETS: Final = "secrets"
PIECE: Final = 1024
MOST_TIMED: Final = 512 * PIECE
_KEY_BYTES: Final = 32
_GROUPS: Final = ("kind", "source")


class Labelled(NamedTuple):
    """A text and its values; `about` is what its file is about."""

    text: str
    values: tuple[Value, ...]
    about: str
    row: dict[str, Any]


class Measure(NamedTuple):
    """One line of the table: a share (or milliseconds) with its interval."""

    cell: str
    name: str
    rate: Rate
    unit: str = ""


def holds_values(path: Path) -> bool:
    """Return whether the first row of *path* has labelled values instead of a label."""
    with path.open("rb") as lines:
        row = _row(lines.readline())
    return row is not None and "spans" in row and "label" not in row


def read_values(path: Path) -> list[Labelled]:
    """Return the rows of *path* as labelled texts.

    Raises:
        UntrustedDataError: a row has no text, or values outside it.

    """
    read: list[tuple[str, tuple[Value, ...], dict[str, Any]]] = []
    for number, line in enumerate(path.read_bytes().rstrip(b"\n").split(b"\n"), 1):
        row = _row(line)
        values = None if row is None else _values(row)
        if row is None or values is None:
            raise UntrustedDataError(
                f"{path}:{number} is not a row with labelled values",
                check="labelled-row",
                hint='"spans" is a list of {"start","end","type"} inside "text", in code points',
            )
        read.append((row["text"], values, row))
    secrets = sum(value.is_secret for _text, values, _row in read for value in values)
    about = SECRETS if 2 * secrets > sum(len(values) for _text, values, _row in read) else PERSONAL
    return [Labelled(text, values, about, row) for text, values, row in read]


def measure(rows: Sequence[Labelled]) -> list[Measure]:
    """Redact every text, every kind of value replaced, and measure."""
    redacted = _redact(rows)
    found: list[Measure] = []
    for about in (PERSONAL, SECRETS):
        mine = [(row, done) for row, done in zip(rows, redacted, strict=True) if row.about == about]
        if mine:
            found += _measured(about, mine)
    return found


def _measured(about: str, rows: Sequence[tuple[Labelled, Redacted]]) -> Iterable[Measure]:
    patterned: Callable[[Value], bool] = is_secret if about == SECRETS else is_patterned
    counted = [(row, count(done, counts=patterned)) for row, done in rows]
    for cell, members in _cells(counted):
        name = f"{about}, {cell}" if cell else about
        if any(one.found + one.missed for one in members):
            yield Measure(name, "found", recall(members))
            if about == PERSONAL:
                yield Measure(name, "F2", f2(members))
    harmless = [one for row, one in counted if not row.values]
    if harmless:
        yield Measure(f"{about}, texts without", "wrongly cut", cut(harmless))
    if about == PERSONAL:
        worded = [count(done, counts=is_worded) for _row, done in rows]
        if any(one.found + one.missed for one in worded):
            yield Measure("names and places", "found", recall(worded))
    else:
        yield from _without_rule(rows)


def _without_rule(rows: Sequence[tuple[Labelled, Redacted]]) -> Iterable[Measure]:
    """Measure the secrets whose kind has no rule of its own."""
    from casemate.guard.entities.providers import PROVIDERS
    from casemate.guard.entities.tokens import TOKENS

    own = {token.kind for token in TOKENS} | {provider.kind for provider in PROVIDERS}
    counted = [count(done, counts=lambda value: value.is_secret and value.type not in own) for _row, done in rows]
    if any(one.found + one.missed for one in counted):
        yield Measure("secrets, kinds without their own form", "found", recall(counted))


def _cells(counted: Sequence[tuple[Labelled, Counted]]) -> Iterable[tuple[str, list[Counted]]]:
    yield "", [one for _row, one in counted]
    for field in _GROUPS:
        for value in sorted({str(row.row[field]) for row, _one in counted if field in row.row}):
            yield f"{field} {value}", [one for row, one in counted if str(row.row.get(field)) == value]


def _redact(rows: Sequence[Labelled]) -> list[Redacted]:
    from casemate.cli.guard_redact import every_kind
    from casemate.guard import Channel
    from casemate.guard.placeholders import Placeholders
    from casemate.guard.redact import redact_text

    policy, names = every_kind(), Placeholders(bytes(_KEY_BYTES))
    done: list[Redacted] = []
    with progress(sum(len(row.text) for row in rows), "redacting") as advance:
        for row in rows:
            spans = redact_text(row.text, policy, Channel.OUTPUT, names).spans
            found = tuple(Value(span.start, span.end, span.type.partition(":")[2]) for span in spans)
            done.append(Redacted(row.values, found))
            advance(len(row.text))
    return done


def latency(texts: Iterable[str]) -> Iterable[Measure]:
    """Measure the thread's CPU time of redaction and injection on *texts*, joined and cut into pieces of 1 KiB.

    Labelled values one after the other are no such text: nobody writes twenty telephone numbers into a KiB.
    """
    from casemate.guard import Channel, Guard, GuardPolicy
    from casemate.guard.placeholders import Placeholders

    guard, policy, names = Guard.default(), GuardPolicy(), Placeholders(bytes(_KEY_BYTES))
    text = "\n".join(texts)[:MOST_TIMED]
    spent: list[float] = []
    for _turn in range(2):  # the first one warms up
        spent.clear()
        for at in range(0, len(text) - PIECE + 1, PIECE):
            piece = text[at : at + PIECE]
            began = time.thread_time_ns()
            guard.redact(piece, Channel.USER, policy, names)
            guard.injection(piece, Channel.USER, policy)
            spent.append((time.thread_time_ns() - began) / 1e6)
    spent.sort()
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        yield Measure("CPU time of the thread per KiB, redaction + injection", name, quantile(spent, share), "ms")


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _values(row: dict[str, Any]) -> tuple[Value, ...] | None:
    text = row.get("text")
    try:
        values = tuple(Value(int(s["start"]), int(s["end"]), str(s["type"])) for s in row["spans"])
    except (ValueError, TypeError, KeyError):
        return None
    inside = isinstance(text, str) and all(0 <= value.start < value.end <= len(text) for value in values)
    return values if inside else None


def described(found: Measure) -> dict[str, Any]:
    """Return *found* for `--json`; `value` is null where there were too few."""
    enough = found.rate.enough
    numbers = (found.rate.value, found.rate.low, found.rate.high)
    value, low, high = (round(number, 4) if enough else None for number in numbers)
    unit = {"unit": found.unit} if found.unit else {}
    return {
        "cell": found.cell,
        "measure": found.name,
        "value": value,
        "low": low,
        "high": high,
        "n": found.rate.count,
    } | unit


def shown(found: Measure) -> tuple[str, ...]:
    """Return *found* as a line of the table."""
    rate = found.rate
    if not rate.enough:
        return found.cell, found.name, f"insufficient (n={rate.count})"
    if found.unit:
        return found.cell, found.name, f"{rate.value:.3f} {found.unit} ({rate.low:.3f}-{rate.high:.3f}, n={rate.count})"
    form = ".3f" if found.name == "F2" else ".1%"
    return found.cell, found.name, f"{rate.value:{form}} ({rate.low:{form}}-{rate.high:{form}}, n={rate.count})"
