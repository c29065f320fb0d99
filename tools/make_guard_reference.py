#!/usr/bin/env python3
"""Write the lists of docs/reference/guard-entities.md from the rules."""

from __future__ import annotations

import sys

import regions

from casemate.guard.entities import commands
from casemate.guard.entities.labels import WORDS
from casemate.guard.entities.numbers import ROWS
from casemate.guard.entities.providers import PROVIDERS
from casemate.guard.entities.tokens import TOKENS

PAGE = regions.ROOT / "docs" / "reference" / "guard-entities.md"
SINGLE = ("bip39", "bitcoin-private-key", "generic-api-key", "password", "pin", "private-key", "url-credentials")
SHOWN = 6


def numbers() -> str:
    """Return the table of identity, tax, health and account numbers."""
    lines = []
    for kind in sorted({row.kind for row in ROWS}):
        rows = [row for row in ROWS if row.kind == kind]
        words = " ".join(dict.fromkeys(word for row in rows for word in WORDS[row.label].split()[:SHOWN]))
        alone = "yes" if any(row.strong for row in rows) else "no"
        check = "yes" if all(row.check for row in rows) else "form only"
        lines.append((f"`{kind}`", check, alone, words))
    return regions.table(("type", "check digits, ranges or a date", "stands without a word", "words (some)"), lines)


def secrets() -> str:
    """Return the kinds of secrets."""
    kinds = {*SINGLE, *(t.kind for t in TOKENS), *(p.kind for p in PROVIDERS), *(r.kind for r in commands.ROWS)}
    return f"{len(kinds)} kinds:\n\n" + ", ".join(f"`{kind}`" for kind in sorted(kinds)) + "."


def render() -> dict[str, str]:
    """Return the page's regions."""
    return {"numbers": numbers(), "secrets": secrets()}


if __name__ == "__main__":
    sys.exit(regions.main(PAGE, render()))
