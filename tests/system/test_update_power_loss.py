"""An update and a power cut: whatever of its writes reached the disk, in whatever pieces, the device comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import power_loss
from support.generation_writer import SCENARIOS

TESTS = Path(__file__).parents[1]
IN_CHECK = 40
IN_LONG = 200  # of each scenario: 600 in all
ATTEMPTS = 3

pytestmark = pytest.mark.root


@pytest.fixture
def _possible(request):
    """A proof that was not made is said aloud, and counts as failed where everything is asked for."""
    if lacks := power_loss.missing():
        reason = f"NO PROOF OF POWER LOSS: this machine lacks {', '.join(lacks)}"
        (pytest.fail if "long" in request.node.keywords else pytest.skip)(reason)


def cut(scenario: str, states: int, *options: str) -> dict[str, Any]:
    run = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-m", "support.power_loss",
         scenario, str(states), *options],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def require_no_bad_state(found: dict[str, Any], wanted: int) -> None:
    assert found["bad"] == []
    assert found["finished"] == "", "what was finished did not last"
    assert found["tried"] >= wanted


@pytest.mark.usefixtures("_possible")
def test_forty_torn_states_of_an_update_are_good():
    require_no_bad_state(cut("confirm", IN_CHECK), IN_CHECK)


@pytest.mark.usefixtures("_possible")
def test_a_writer_that_does_not_sync_is_caught():
    """The proof has power. How often the bystander commits in the middle is chance, hence the attempts."""
    assert any(cut("confirm", 2 * IN_CHECK, "no-fsync")["bad"] for _ in range(ATTEMPTS))


@pytest.mark.long
@pytest.mark.usefixtures("_possible")
def test_hundreds_of_torn_states_of_every_scenario_are_good():
    tried = 0
    for scenario in SCENARIOS:
        found = cut(scenario, IN_LONG)
        require_no_bad_state(found, 100)
        tried += found["tried"]
    assert tried >= 500
