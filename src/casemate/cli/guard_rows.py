"""Rows of texts, judged: the guard's batch form, which is also how others measure it.

One JSON object per line in, one per line out, in order. A line that is not a row is blocked with `invalid-row`; nothing
a row holds stops the run. Verdict and score are the injection and hidden-channel decision; personal data and secrets
only add reasons.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from casemate.cli.output import progress
from casemate.errors import OperationError
from casemate.guard import Action, Channel, Guard, GuardPolicy, Verdict

LINE_LIMIT: Final = 64 * 1024 * 1024
INVALID: Final = Verdict(Action.BLOCK, 1.0, ("invalid-row",))


def check_rows(rows_file: Path, out_file: Path, policy: GuardPolicy) -> int:
    """Judge every line of *rows_file* into *out_file* and return how many there were.

    Raises:
        OperationError: a file cannot be read or written.

    """
    guard = Guard.default()
    count = 0
    try:
        size = rows_file.stat().st_size
        with rows_file.open("rb") as rows, written(out_file) as verdicts, progress(size, "judging") as advance:
            for line in lines_of(rows):
                advance(len(line))
                verdicts.write(json.dumps(judge_line(line, guard, policy)).encode() + b"\n")
                count += 1
    except OSError as error:
        hint = "free some space, or choose another place"
        raise OperationError(f"cannot write {out_file}: {error.strerror}", hint=hint) from error
    return count


def lines_of(rows: BinaryIO) -> Iterator[bytes]:
    """Yield every line; of one longer than LINE_LIMIT only the beginning, which is no row."""
    while line := rows.readline(LINE_LIMIT):
        yield line
        rest = line
        while len(rest) == LINE_LIMIT and not rest.endswith(b"\n"):
            rest = rows.readline(LINE_LIMIT)


@contextlib.contextmanager
def written(target: Path) -> Iterator[BinaryIO]:
    """Open *target* for writing; a file appears whole or not at all, a device or pipe is written as it is."""
    if target.exists() and not target.is_file():
        with target.open("wb") as out:
            yield out
        return
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        with unfinished.open("wb") as out:
            yield out
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def judge_line(line: bytes, guard: Guard, policy: GuardPolicy) -> dict[str, Any]:
    """Return the verdict row of one input line."""
    row = parse_row(line)
    if row is None:
        return _answer(_id_of(line), INVALID)
    name, text, channel = row
    return _answer(name, guard.injection(text, channel, policy))


def parse_row(line: bytes) -> tuple[str | int, str, Channel] | None:
    """Return (id, text, channel) of a line, None when it is not a row.

    A name that stands twice makes a line no row: readers differ in which of the two they take, and one of them could be
    the reader that acts.
    """
    try:
        row = read_row(line)
        name, text, channel = row["id"], row["text"], Channel(row["channel"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    valid = isinstance(name, str | int) and not isinstance(name, bool) and isinstance(text, str)
    return (name, text, channel) if valid else None


def read_row(line: bytes) -> Any:
    """Return the JSON of a line that is short enough and in which no name stands twice.

    Raises:
        ValueError: it is no such line.
        RecursionError: it nests too deep.

    """
    if len(line) >= LINE_LIMIT:
        raise ValueError("too long for a row")
    return json.loads(line, object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a name stands twice")
    return row


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _id_of(line: bytes) -> str | int | None:
    """Return the id of a bad row where it has one, so that its answer can still be matched."""
    try:
        name = read_row(line)["id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return name if isinstance(name, str | int) and not isinstance(name, bool) else None


def _answer(name: str | int | None, verdict: Verdict) -> dict[str, Any]:
    return {
        "id": name,
        "verdict": str(verdict.action),
        "score": verdict.score,
        "reasons": list(verdict.reasons),
    }
