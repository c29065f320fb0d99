#!/usr/bin/env python3
"""Fill README.md: the transcript from a real `casemate demo`, the table from the benchmarks' JSON.

python tools/make_readme.py              run the demo; take bench-results/*.json when they are there
python tools/make_readme.py --check      run nothing: the transcript must name every attack as blocked
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import regions

from casemate.cli import tour

PAGE = regions.ROOT / "README.md"
RESULTS = regions.ROOT / "bench-results"
WIDTH = 116
ALL_BLOCKED = "all five attacks were blocked"


def demo() -> str:
    """Run the demo and return its output; a demo that fails is not a transcript."""
    command = [str(Path(sys.executable).parent / "casemate"), "demo"]
    environ = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"the demo failed; the README stays as it is\n{done.stdout}{done.stderr}")
    return done.stdout


def transcript(output: str) -> str:
    """Return the attacks of the demo, each with what was seen; longer lines end in an ellipsis."""
    lines = output.splitlines()
    kept = ["$ casemate demo", "..."]
    for at, line in enumerate(lines):
        if line.lstrip().startswith("blocked"):
            kept += [line, lines[at + 1]]
    shown = [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in [*kept, lines[-1]]]
    return "```console\n" + "\n".join(shown) + "\n```"


def titles() -> list[str]:
    """Return the attacks' titles, in the demo's order."""
    return [step.title for step in tour.STEPS if step.id in tour.ATTACKS]


def check() -> int:
    """Compare the transcript with what the demo would show now, without running it."""
    shown = regions.read(PAGE.read_text(encoding="utf-8"), "transcript")
    missing = [title for title in titles() if f"blocked  {title}" not in shown]
    if missing or ALL_BLOCKED not in shown:
        sys.stderr.write(f"README.md's transcript is out of date ({missing}); run: make docs\n")
        return 1
    return 0


def number(value: float) -> str:
    """Return *value* as a person writes it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # noqa: PLR2004 - from here on no decimals


def row(result: dict[str, Any]) -> tuple[str, ...]:
    """Return one benchmark's cells."""
    peer = f"{result['peer']}: {number(result['peer_value'])}" if result.get("peer_value") is not None else ""
    ratio = f"{result['ratio']:.2f}" if result.get("ratio") is not None else ""
    met = {True: "yes", False: "**no**", None: ""}[result.get("met")]
    return result["what"], f"{number(result['value'])} {result['unit']}", peer, ratio, result["goal"], met


def bench(reports: list[dict[str, Any]]) -> str:
    """Return the rows that have a goal, and the machine they were measured on."""
    machine = reports[0]["machine"]
    rows = [row(result) for report in reports for result in report["rows"] if result["goal"]]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['arch']}"
    table = regions.table(("what", "measured", "peer, same run", "ratio", "goal", "met"), rows)
    return f"{table}\n\nMeasured on {where}, Linux {machine['kernel']}, Python {machine['python']}, by `make bench`."


def reports() -> list[dict[str, Any]]:
    """Return what the last `make bench` wrote."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]


def render() -> dict[str, str]:
    """Return the regions that can be written now."""
    found = {"transcript": transcript(demo())}
    measured = reports()
    return {**found, "bench": bench(measured)} if measured else found


if __name__ == "__main__":
    sys.exit(check() if "--check" in sys.argv[1:] else regions.main(PAGE, render()))
