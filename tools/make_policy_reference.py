#!/usr/bin/env python3
"""Write the tables of docs/reference/policy.md from the rows that check policy files."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import regions

from casemate.formats.policy import ROWS, AppPolicy, Row

PAGE = regions.ROOT / "docs" / "reference" / "policy.md"


def spelled(value: object) -> str:
    """Return *value* as TOML spells it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(spelled(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{spelled(key)} = {spelled(item)}" for key, item in value.items()) + " }"
    return str(value)


def default(row: Row) -> str:
    """Return what holds when the key is left out."""
    value: object = AppPolicy()
    if row.key == "schema":
        return "1"
    for name in row.key.split("."):
        value = getattr(value, name)
    return spelled(value)


def rows(*, guard: bool) -> str:
    """Return the table of one part of the file."""
    lines = [
        (f"`{row.key.removeprefix('guard.')}`", row.takes.words, f"`{default(row)}`", row.help)
        for row in ROWS
        if row.key.startswith("guard.") is guard
    ]
    return regions.table(("key", "takes", "default", "what it does"), lines)


def render() -> dict[str, str]:
    """Return the page's regions."""
    return {"keys": rows(guard=False), "guard": rows(guard=True)}


if __name__ == "__main__":
    sys.exit(regions.main(PAGE, render()))
