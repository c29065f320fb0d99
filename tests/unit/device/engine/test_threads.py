from __future__ import annotations

import os

import pytest

from casemate.device.engine import threads


def test_one_core_stays_free(monkeypatch):
    bound = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _pid, cores: bound.append(list(cores)))
    assert threads.bind([0, 1, 2, 3]) == [1, 2, 3]
    assert threads.bind([0]) == [0]
    assert bound == [[1, 2, 3], [0]]


@pytest.mark.parametrize(("usable", "counts"), [(1, [1]), (2, [2, 1]), (3, [3, 2]), (7, [7, 4])])
def test_candidates_never_pass_the_usable_cores(usable, counts):
    assert threads.candidates(usable) == counts


def calibrated(speeds):
    loaded = []

    def load(count):
        loaded.append(count)
        return count

    return threads.calibrate(list(speeds), load, speeds.__getitem__), loaded


def test_one_candidate_needs_no_trial():
    assert calibrated({1: 0.0}) == ((1, 1, {}), [1])


def test_the_fastest_wins_and_is_loaded_once():
    assert calibrated({3: 500.0, 2: 800.0}) == ((2, 2, {3: 500.0, 2: 800.0}), [3, 2])
    assert calibrated({3: 800.0, 2: 500.0}) == ((3, 3, {3: 800.0, 2: 500.0}), [3, 2])


def test_a_slow_model_is_not_tried_twice():
    assert calibrated({3: 4.0, 2: 900.0}) == ((3, 3, {3: 4.0}), [3])
