"""Rows of texts, judged: the guard's batch form, which is also how others measure it.

One JSON object per line in, one per line out, in order. A line that is not a row is blocked with `invalid-row`; nothing
a row holds stops the run. Verdict and score are the injection and hidden-channel decision; personal data and secrets
only add reasons.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

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
    unfinished = out_file.with_name(f".{out_file.name}.unfinished")
    count = 0
    try:
        size = rows_file.stat().st_size
        with rows_file.open("rb") as rows, unfinished.open("wb") as verdicts, progress(size, "judging") as advance:
            while line := rows.readline(LINE_LIMIT):
                advance(len(line))
                verdicts.write(json.dumps(judge_line(line, guard, policy)).encode() + b"\n")
                count += 1
        unfinished.replace(out_file)
    except OSError as error:
        hint = "free some space, or choose another place"
        raise OperationError(f"cannot write {out_file}: {error.strerror}", hint=hint) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def judge_line(line: bytes, guard: Guard, policy: GuardPolicy) -> dict[str, Any]:
    """Return the verdict row of one input line."""
    row = parse_row(line)
    if row is None:
        return _answer(_id_of(line), INVALID)
    name, text, channel = row
    return _answer(name, guard.injection(text, channel, policy))


def parse_row(line: bytes) -> tuple[str | int, str, Channel] | None:
    """Return (id, text, channel) of a line, None when it is not a row."""
    try:
        row = json.loads(line)
        name, text, channel = row["id"], row["text"], Channel(row["channel"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    valid = isinstance(name, str | int) and not isinstance(name, bool) and isinstance(text, str)
    return (name, text, channel) if valid else None


def _id_of(line: bytes) -> str | int | None:
    """Return the id of a bad row where it has one, so that its answer can still be matched."""
    try:
        name = json.loads(line)["id"]
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
