"""A disk that fills up before any step of an update: nothing is lost, it stays readable, and the next try works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", ["pages", "files"])
def test_a_full_disk_stops_a_step_and_nothing_else(kind):
    run = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-m", "support.disk_full", kind],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    failed = json.loads(run.stdout)
    assert failed.pop("gc") == 0, "making room needs none"
    assert min(failed.values()) >= 1, "the disk was never full"
    assert failed["stage"] >= 5
