"""An update killed at any system call that changes the disk: the device boots what it had or what it gets, whole."""

from __future__ import annotations

import random
import shutil
from collections import Counter

import pytest

from support import generations, kill_points
from support.generation_writer import SCENARIOS
from support.generations import require_sound

SAMPLE = 6


@pytest.fixture
def scratch():
    path = generations.scratch()
    yield path
    shutil.rmtree(path)


def ended_everywhere(scratch, *arguments: str, sample: int | None = None, call: str = "") -> Counter[int]:
    """End the writer at every kill point, or a seeded *sample*; returns which set ran afterwards, and how often."""
    start = scratch / "start"
    generations.begin(start, arguments[0])
    whole = scratch / "whole"
    shutil.copytree(start, whole)
    points = kill_points.points(scratch / "log", str(whole), *arguments)
    assert len(points) > 60
    assert {"write", "fsync", "rename", "mkdir"} <= {name for name, _ in points}
    points = [point for point in points if call in ("", point[0])]
    if sample:
        points = sorted(random.Random(arguments[0]).sample(points, sample))
    ran: Counter[int] = Counter()
    for name, k in points:
        root = scratch / f"{name}-{k}"
        shutil.copytree(start, root)
        kill_points.kill_at(name, k, str(root), *arguments)
        ran[require_sound(root, {0, 1, 2, 3} if arguments[0] == "first" else {1, 2, 3}, newest=4)] += 1
        shutil.rmtree(root)
    return ran


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_update_killed_at_some_system_calls(scratch, scenario):
    assert sum(ended_everywhere(scratch, scenario, sample=SAMPLE).values()) == SAMPLE


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_update_killed_at_every_system_call(scratch, scenario):
    ran = ended_everywhere(scratch, scenario, sample=None)
    assert ran[0 if scenario == "first" else 1]
    assert ran[2]


def test_a_switch_that_is_not_one_write_is_caught(scratch):
    """The check has power: a state that is written in place, and killed halfway, does not pass it."""
    with pytest.raises(AssertionError, match="recovered: the update's state file is not whole"):
        ended_everywhere(scratch, "confirm", "in-place", call="write")
