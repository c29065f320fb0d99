from __future__ import annotations

import pytest

from casemate.guard.metrics import Judged, f2, false_alarms, precision, recall, recall_at, wilson


def rows(attacks, harmless):
    return [*(Judged(1, s, s >= 0.5) for s in attacks), *(Judged(0, s, s >= 0.5) for s in harmless)]


def test_wilsons_interval_is_the_published_one():
    rate = wilson(5, 10)
    assert (rate.value, round(rate.low, 4), round(rate.high, 4)) == (0.5, 0.2366, 0.7634)
    assert wilson(0, 0).enough is False


def test_rates():
    sample = rows([0.9] * 60 + [0.1] * 40, [0.9] * 2 + [0.1] * 98)
    assert recall(sample).value == 0.6
    assert false_alarms(sample).value == 0.02
    assert precision(sample).value == pytest.approx(60 / 62)
    assert f2(sample).value == pytest.approx(5 * 60 / (5 * 60 + 4 * 40 + 2))


def test_recall_at_one_percent_moves_the_threshold():
    harmless = [i / 1000 for i in range(200)]
    sample = rows([0.1985] * 30 + [0.5] * 70, harmless)
    assert recall_at(sample, 0.01).value == 1.0
    assert recall_at(sample, 0.0).value == 0.7


def test_small_cells_say_nothing():
    assert not recall(rows([0.9] * 49, [])).enough
    assert recall(rows([0.9] * 50, [])).enough


def test_the_bootstrap_is_reproducible_and_covers_its_value():
    sample = rows([0.9] * 50 + [0.2] * 50, [0.1] * 90 + [0.7] * 10)
    assert f2(sample) == f2(sample)
    assert f2(sample).low <= f2(sample).value <= f2(sample).high
