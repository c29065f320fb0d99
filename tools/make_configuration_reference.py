#!/usr/bin/env python3
"""Write the table of settings in docs/reference/configuration.md from `casemate.config.SETTINGS`."""

from __future__ import annotations

import sys

import regions

from casemate.config import SETTINGS, Setting

PAGE = regions.ROOT / "docs" / "reference" / "configuration.md"


def default(row: Setting) -> str:
    """Return the built-in value as TOML would spell it."""
    if isinstance(row.default, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in row.default) + "]`"
    return f'`"{row.default}"`' if isinstance(row.default, str) else f"`{row.default}`"


def render() -> dict[str, str]:
    """Return the page's region."""
    rows = [(f"`{row.key}`", default(row), f"`{row.variable}`", row.help) for row in SETTINGS]
    return {"settings": regions.table(("setting", "default", "environment", "what it does"), rows)}


if __name__ == "__main__":
    sys.exit(regions.main(PAGE, render()))
