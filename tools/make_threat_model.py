#!/usr/bin/env python3
"""Write the tables of docs/threat-model.md from docs/threat-model.toml."""

from __future__ import annotations

import sys
import tomllib
from typing import Any

import regions

PAGE = regions.ROOT / "docs" / "threat-model.md"
DATA = regions.ROOT / "docs" / "threat-model.toml"


def name_of(words: str) -> str:
    """Return the short name that opens a description: the part in bold."""
    return words.split("**")[1]


def link(test: str) -> str:
    """Return a test as a link to its file, with the function's name when the row has one."""
    path, _, function = test.partition("::")
    return f"[{function or path.rpartition('/')[2]}](../{path})"


def describe(words: dict[str, str]) -> str:
    """Return descriptions as a list."""
    return "\n".join(f"- {text}" for text in words.values())


def rows_of(model: dict[str, Any], asset: str) -> str:
    """Return one asset's table."""
    rows = [
        (
            row["id"],
            name_of(model["adversaries"][row["adversary"]]).lower(),
            row["stride"],
            row["threat"],
            row["control"],
            row["residual"],
            "<br>".join(link(test) for test in row["tests"]),
        )
        for row in model["row"]
        if row["asset"] == asset
    ]
    return regions.table(("id", "adversary", "STRIDE", "threat", "control", "what remains", "test"), rows)


def render() -> dict[str, str]:
    """Return the page's regions."""
    model = tomllib.loads(DATA.read_text(encoding="utf-8"))
    sections = [f"### {name_of(words)}\n\n{rows_of(model, asset)}" for asset, words in model["assets"].items()]
    return {
        "assets": describe(model["assets"]),
        "adversaries": describe(model["adversaries"]),
        "rows": "\n\n".join(sections),
    }


if __name__ == "__main__":
    sys.exit(regions.main(PAGE, render()))
