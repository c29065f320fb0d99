"""What a rollout's page draws: the path is the test's own, bounds are inside, bars add up."""

from __future__ import annotations

import itertools
import math
import re

from hypothesis import given
from hypothesis import strategies as st

from casemate.fleet.rollout import story
from casemate.fleet.rollout.failures import Finding, Hypotheses, canary
from casemate.fleet.rollout.story import Evidence
from casemate.fleet.web import plots, rollouts

TEST = Hypotheses()
judged = st.lists(st.booleans(), max_size=400)


def evidence(path):
    return Evidence(TEST.good, TEST.bad, TEST.lower, TEST.upper, path, 0.001, [])


@given(judged)
def test_the_path_ends_where_the_test_decides(news):
    path = story.path_of(TEST, news)
    last, bad = path[-1], sum(news)
    assert (last.devices, last.failed) == (len(news), bad)
    finding = canary(TEST, failed=bad, good=len(news) - bad, pending=0)
    assert (finding is Finding.BAD) == (last.ratio >= TEST.upper - 1e-4)
    assert all(after.ratio > before.ratio for before, after in itertools.pairwise(path) if after.failed > before.failed)


@given(judged, st.integers(3, 60))
def test_a_thinned_path_keeps_its_ends_and_its_jumps(news, most):
    path = story.path_of(TEST, news)
    thin = story.thinned(path, most)
    assert (thin[0], thin[-1]) == (path[0], path[-1])
    assert [point.devices for point in thin] == sorted({point.devices for point in thin})
    if sum(news) <= most:
        kept = {point.devices for point in thin}
        assert all(number in kept for number, bad in enumerate(news, 1) if bad) or len(path) <= most


@given(judged)
def test_everything_is_inside_the_drawing_and_the_bounds_are_in_order(news):
    plot = plots.test_plot(evidence(story.path_of(TEST, news)))
    assert 0 < plot.upper < plot.zero < plot.lower < plot.height
    for across, down in (pair.split(",") for pair in plot.line.split()):
        assert 0 <= float(across) <= plot.width
        assert 0 <= float(down) <= plot.height
    assert re.fullmatch(r"[\d., ]+", plot.line), "numbers and nothing else go into an attribute"


@given(
    st.lists(st.tuples(st.sampled_from(list(rollouts.KINDS)), st.integers(0, 10**6)), max_size=6), st.integers(0, 10**6)
)
def test_a_bar_never_overflows_and_hides_nobody(counts, whole):
    segments = plots.bar(counts, whole)
    assert len(segments) == sum(count > 0 for _, count in counts)
    assert all(one.length > 0 for one in segments)
    assert sum(one.length for one in segments) <= 100.1
    assert all(
        math.isclose(one.start + one.length, after.start, abs_tol=0.02) for one, after in itertools.pairwise(segments)
    )


@given(st.integers(1, 10**7))
def test_ticks_are_round_and_few(most):
    ticks = plots.nice(most)
    assert ticks[0] == 0
    assert ticks[-1] <= most
    assert len(ticks) <= 7


@given(st.floats(0, 1e6, allow_nan=False))
def test_a_ratio_is_somewhere_on_the_axis(value):
    assert 0 <= plots.share_of_axis(value, 0.5, 2.0) <= 100


def test_batches_that_were_not_reached_are_rows_too():
    terms = {"first": 20, "second": 200}
    rollout = {"state": "running", "devices": 400, "sizes": [20, 220, 400], "terms": terms}
    rollout["batches"] = [{"batch": 0, "good": 18, "failed": 1, "absent": 1}, {"batch": 1, "taken": 3, "installed": 4}]
    first, second, third = rollouts.batches(rollout)
    assert (first.counts["good"], first.counts["failed"], first.absent, first.size) == (18, 1, 1, 20)
    assert (second.counts["installing"], second.counts["soaking"], second.size) == (3, 4, 200)
    assert (third.upto, third.is_reached) == (400, False)
    widened = rollout | {"batches": [*rollout["batches"], {"batch": 3, "good": 1}]}
    assert [one.upto for one in rollouts.batches(widened)] == [20, 220, 400, 400]
    assert [one.upto for one in rollouts.batches(rollout | {"state": "draft", "devices": 0, "batches": []})] == [
        20,
        220,
    ]
