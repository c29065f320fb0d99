#!/usr/bin/env python3
"""Write the table of events in docs/reference/journal.md from the table that the journal checks them by."""

from __future__ import annotations

import inspect
import sys

import regions

from casemate.formats import event

PAGE = regions.ROOT / "docs" / "reference" / "journal.md"


def meaning(code: str) -> str:
    """Return what a kind's builder says it records."""
    doc = inspect.getdoc(getattr(event, code)) or ""
    text = " ".join(doc.removeprefix("Build: ").split()).replace("*", "")
    return text.rstrip(".")


def speakers(kind: event.Kind) -> str:
    """Return who may report it; `cli` is a command of the owner, which the agent passes on."""
    return ", ".join(sorted(kind.roles))


def rows() -> list[tuple[str, ...]]:
    """Return one row for each kind."""
    return [
        (f"`{code}`", f"{kind.class_uid}/{kind.activity_id}", kind.severity.name.lower(), speakers(kind), meaning(code))
        for code, kind in event.KINDS.items()
    ]


def render() -> dict[str, str]:
    """Return the page's regions."""
    header = ("event", "OCSF class/activity", "severity", "who may report it", "what happened")
    return {"events": regions.table(header, rows())}


if __name__ == "__main__":
    sys.exit(regions.main(PAGE, render()))
