#!/usr/bin/env python3
"""Write the tables of docs/reference/sandbox.md from the code that they describe."""

from __future__ import annotations

import sys

import regions

from casemate.device.engine.llama import MUST_STAY_EMPTY, PARAMETERS
from casemate.device.escape.catalogue import PROBES
from casemate.device.sandbox import seccomp

PAGE = regions.ROOT / "docs" / "reference" / "sandbox.md"


def probes() -> str:
    """Return the table of probes."""
    rows = [(f"`{probe.id}`", probe.tries, probe.layer, ", ".join(probe.needs) or "-") for probe in PROBES]
    return regions.table(("probe", "tries to", "stopped by", "control needs"), rows)


def calls(rules: tuple[seccomp.Rule, ...]) -> str:
    """Return the names of *rules*, an asterisk after those that are allowed with some arguments only."""
    names = {rule.name: rule.argument is not None for rule in rules}
    return ", ".join(f"`{name}`{'*' if bounded else ''}" for name, bounded in sorted(names.items()))


def parameters() -> str:
    """Return the table of settings that differ from the library's defaults."""
    rows = [(f"`{row.name}`", f"`{getattr(row.value, 'name', row.value)!r}`", row.why) for row in PARAMETERS]
    return regions.table(("parameter", "value", "why"), rows)


def render() -> dict[str, str]:
    """Return the page's regions."""
    return {
        "probes": probes(),
        "load": calls(seccomp.LOAD),
        "run": calls(seccomp.RUN),
        "parameters": parameters(),
        "empty": ", ".join(f"`{name}`" for name in MUST_STAY_EMPTY),
    }


if __name__ == "__main__":
    sys.exit(regions.main(PAGE, render()))
