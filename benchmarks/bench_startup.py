"""What every command costs before it does anything: CPU of `casemate --version` against the bare interpreter."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from report import Row, options, publish

ROUNDS = 12


def cpu_of(command: list[str]) -> float:
    """Return the least CPU seconds (user + system) of several runs: the noise is one-sided."""
    best = float("inf")
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def main() -> None:
    args = options(__doc__)
    bare = cpu_of([sys.executable, "-c", "pass"])
    rows = []
    for what, arguments in (("--version", ["--version"]), ("--help", ["--help"])):
        ours = cpu_of([sys.executable, "-m", "casemate", *arguments])
        rows.append(
            Row(f"casemate {what}, CPU", ours * 1000, "ms", "python -c pass", bare * 1000, "<= 5x", ours <= 5 * bare)
        )
    publish("startup", rows, args)


if __name__ == "__main__":
    main()
