"""The fleet's tour in one command: every step does what it must, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

STEPS = ["serve", "enrol", "start", "attest", "key", "tampered", "quarantine", "journal", "wipe"]
STEPS += ["crowd", "release", "rollout", "canary"]


@pytest.fixture
def short() -> Iterator[Path]:
    """Return a directory with a name that leaves room for sockets."""
    with tempfile.TemporaryDirectory(prefix="cmt-") as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_tour_takes_every_step_and_leaves_nothing_behind(short):
    done = subprocess.run(
        [sys.executable, "-m", "casemate", "fleet", "demo", "--no-stay", "--json"],
        env={**os.environ, "TMPDIR": str(short)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["step"], row["ok"]) for row in rows] == [(step, True) for step in STEPS], done.stdout + done.stderr
    assert done.returncode == 0
    assert list(short.iterdir()) == []
    assert _running(short) == []


def _running(place: Path) -> list[str]:
    """Return the command lines of processes that still name *place*."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if str(place) in words:
            found.append(words)
    return found
