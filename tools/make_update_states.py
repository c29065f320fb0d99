#!/usr/bin/env python3
"""Write the diagram and the table of docs/reference/update-states.md from the code that they describe."""

from __future__ import annotations

import sys

import regions

from casemate.device.update.states import ROWS, Phase, mermaid

PAGE = regions.ROOT / "docs" / "reference" / "update-states.md"


def table() -> str:
    """Return every row of the machine."""
    rows = []
    for row in ROWS:
        before = "any" if len(row.phases) == len(Phase) else ", ".join(row.phases)
        rows.append((row.event, before, row.to or "stays", row.means))
    return regions.table(("event", "in", "then", "means"), rows)


def render() -> dict[str, str]:
    """Return the page's regions."""
    return {"diagram": f"```mermaid\n{mermaid()}\n```", "table": table()}


if __name__ == "__main__":
    sys.exit(regions.main(PAGE, render()))
