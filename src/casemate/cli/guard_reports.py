"""Wrong verdicts, kept for the next training: redacted, in the device's home, never sent anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from casemate import config
from casemate.cli.guard_rows import parse_row
from casemate.errors import NotFoundError
from casemate.guard import Action, Channel, Guard, GuardPolicy
from casemate.guard.placeholders import Placeholders

_KEY: Final = b"reports are redacted alike, so equal values stay equal"
_REDACT_ALL: Final = GuardPolicy(input_entities={"*": Action.REDACT}, output_entities={"*": Action.REDACT})


def row_text(rows_file: Path, name: str) -> tuple[str, str]:
    """Return (text, channel) of row *name*.

    Raises:
        NotFoundError: no row has that id.

    """
    with rows_file.open("rb") as rows:
        for line in rows:
            row = parse_row(line)
            if row is not None and str(row[0]) == name:
                return row[1], str(row[2])
    raise NotFoundError(f"no row {name!r} in {rows_file}", hint="ids are those of the file that was judged")


def keep_report(name: str, text: str, channel: str, expected: str | None) -> tuple[dict[str, Any], Path]:
    """Judge *text* again, redact it, and append it to the home's reports; return the report and where it is."""
    guard = Guard.default()
    where = Channel(channel)
    verdict = guard.injection(text, where, GuardPolicy())
    blocked = verdict.action is Action.BLOCK
    report = {
        "id": name,
        "text": guard.redact(text, where, _REDACT_ALL, Placeholders(_KEY)).text,
        "channel": channel,
        "verdict": str(verdict.action),
        "score": verdict.score,
        "reasons": list(verdict.reasons),
        "expected": expected or ("allow" if blocked else "block"),
    }
    path = config.home_path() / "guard" / "reports.jsonl"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    with path.open("a", encoding="utf-8") as reports:
        reports.write(json.dumps(report) + "\n")
    return report, path
