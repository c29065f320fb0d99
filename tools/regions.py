# ruff: noqa: INP001 - not a package: the scripts beside it import it by name
"""Generated regions of the documentation: `<!-- NAME:begin -->` to `<!-- NAME:end -->`, everything else is by hand.

Each `make_*.py` renders its regions and calls `main`. With --check it writes nothing and exits 1 when the page on disk
is not what would be written. `make docs` runs them all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def fill(text: str, regions: Mapping[str, str]) -> str:
    """Return *text* with the body of each region replaced; every region must be there exactly once."""
    for name, body in regions.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"the page needs one {begin} and one {end}")
        pattern = re.escape(begin) + r".*" + re.escape(end)
        text = re.sub(pattern, lambda _, b=begin, x=body, e=end: f"{b}\n{x.strip()}\n{e}", text, flags=re.DOTALL)
    return text


def read(text: str, name: str) -> str:
    """Return the body of region *name*."""
    found = re.search(rf"<!-- {re.escape(name)}:begin -->\n?(.*?)\n?<!-- {re.escape(name)}:end -->", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"the page has no region {name}")
    return found.group(1)


def main(page: Path, regions: Mapping[str, str]) -> int:
    """Write the regions of *page*, or with --check only compare; return the exit code."""
    before = page.read_text(encoding="utf-8")
    after = fill(before, regions)
    if "--check" in sys.argv[1:]:
        if before != after:
            sys.stderr.write(f"{page.relative_to(ROOT)} is out of date; run: make docs\n")
            return 1
        return 0
    page.write_text(after, encoding="utf-8")
    return 0


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table; a bar inside a cell is escaped, a line break becomes a space."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)


def cell(text: str) -> str:
    """Return *text* fit for a table cell."""
    return " ".join(text.split()).replace("|", "\\|")
