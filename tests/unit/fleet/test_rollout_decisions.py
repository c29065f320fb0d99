"""Who is next, and when to stop: error rates of the tests, the states, and whole rollouts of simulated fleets."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import ConflictError
from casemate.fleet.rollout import cohorts
from casemate.fleet.rollout.failures import Finding, Hypotheses, Watch, canary
from casemate.fleet.rollout.plan import Action, Plan, Progress, Tally, decide, sizes_in_words
from casemate.fleet.rollout.ranks import Comparison, compare
from casemate.fleet.rollout.simulate import World, simulate
from casemate.fleet.rollout.states import ENDED, OFFERING, TABLE, Event, State, move

TEST = Hypotheses()


# --- cohorts ----------------------------------------------------------------------------------------------------------


def test_each_rollout_has_its_own_order_and_every_replica_the_same():
    devices = [f"device-{number}" for number in range(500)]
    shuffled = random.Random(1).sample(devices, len(devices))
    assert cohorts.order("a", devices) == cohorts.order("a", shuffled)
    first = [set(cohorts.order(name, devices)[:20]) for name in ("a", "b", "c")]
    assert len(first[0] & first[1]) < 8
    assert len(first[1] & first[2]) < 8


def test_the_control_group_has_its_share_and_is_drawn_apart_from_the_order():
    devices = [f"device-{number}" for number in range(4000)]
    control = [device for device in devices if cohorts.in_control("r", device, 0.1)]
    assert 320 < len(control) < 480
    early = set(cohorts.order("r", devices)[:400])
    assert 15 < len(early & set(control)) < 75
    assert not any(cohorts.in_control("r", device, 0.0) for device in devices)
    assert all(cohorts.in_control("r", device, 1.0) for device in devices)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_the_numbers_of_the_sequential_test_are_walds():
    assert math.isclose(TEST.failure, math.log(4))
    assert math.isclose(TEST.success, math.log(0.98 / 0.995))
    assert math.isclose(TEST.upper, math.log(0.99 / 0.002))
    assert math.isclose(TEST.lower, math.log(0.01 / 0.998))


@pytest.mark.parametrize(("rate", "least_bad", "most_bad"), [(0.005, 0.0, 0.006), (0.02, 0.97, 1.0), (0.2, 1.0, 1.0)])
def test_the_sequential_test_keeps_its_error_rates(rate, least_bad, most_bad):
    draw = random.Random(7)
    verdicts = []
    for _ in range(1500):
        failed = good = 0
        while (found := canary(TEST, failed=failed, good=good, pending=0)) is Finding.UNDECIDED:
            bad = draw.random() < rate
            failed, good = failed + bad, good + (not bad)
        verdicts.append(found is Finding.BAD)
    assert least_bad <= statistics.mean(verdicts) <= most_bad


def test_a_test_that_peeks_stops_good_releases_far_more_often():
    """The positive control of the rates above: a z-test at 5 %, looked at every 50 devices."""
    draw = random.Random(7)
    stopped = 0
    for _ in range(300):
        failed = 0
        for count in range(1, 2001):
            failed += draw.random() < TEST.good
            expected = count * TEST.good
            if count % 50 == 0 and failed - expected > 1.645 * math.sqrt(expected * (1 - TEST.good)):
                stopped += 1
                break
    assert stopped / 300 > 0.15


@given(failed=st.integers(0, 500), good=st.integers(0, 5000), pending=st.integers(0, 5000))
def test_devices_that_soak_never_make_a_release_bad_and_never_good(failed, good, pending):
    now = canary(TEST, failed=failed, good=good, pending=pending)
    settled = canary(TEST, failed=failed, good=good + pending, pending=0)
    if now is Finding.BAD:
        assert settled is Finding.BAD
    if now is Finding.GOOD:
        assert canary(TEST, failed=failed, good=good, pending=0) is Finding.GOOD


@given(failed=st.integers(0, 200), good=st.integers(0, 2000))
def test_one_failure_more_is_never_better(failed, good):
    order = {Finding.GOOD: 0, Finding.UNDECIDED: 1, Finding.BAD: 2}
    fewer = canary(TEST, failed=failed, good=good, pending=0)
    more = canary(TEST, failed=failed + 1, good=good, pending=0)
    assert order[fewer] <= order[more]


def test_a_trusted_release_that_turns_bad_is_caught_whatever_it_earned_before():
    watch, found = Watch().look(TEST, failed=500, good=99_500, pending=0)
    assert found is Finding.GOOD
    _, found = watch.look(TEST, failed=500 + 60, good=99_500 + 1940, pending=0)
    assert found is Finding.BAD


def test_hypotheses_that_cannot_be_told_apart_are_refused():
    for rates in ({"good": 0.02, "bad": 0.02}, {"good": 0.0}, {"miss": 0.5}, {"false_alarm": 0.0}):
        with pytest.raises(ValueError):
            Hypotheses(**rates)
    assert Hypotheses.around(0.0).good > 0
    assert Hypotheses.around(0.9).bad < 1


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_slower_devices_are_found_and_equal_ones_are_not():
    draw = random.Random(3)
    control = [draw.lognormvariate(5, 0.3) for _ in range(200)]
    same = [draw.lognormvariate(5, 0.3) for _ in range(200)]
    slower = [draw.lognormvariate(5.3, 0.3) for _ in range(60)]
    assert not compare(same, control).worse(0.001)
    assert compare(slower, control).worse(0.001)
    assert not compare(control, slower).worse(0.001)


def test_ranks_are_right_under_chance_and_one_stuck_device_carries_no_verdict():
    draw = random.Random(5)
    wrong = 0
    for _ in range(800):
        values = [[draw.random() for _ in range(30)] for _ in range(2)]
        found = compare(*values)
        wrong += found.p <= 0.05
    assert 0.025 < wrong / 800 < 0.08
    stuck = [1.0] * 19 + [1e9]
    assert not compare(stuck, [1.0] * 20).worse(0.01)


@given(st.lists(st.floats(0, 1e6), min_size=8, max_size=40), st.lists(st.floats(0, 1e6), min_size=8, max_size=40))
def test_ranks_give_a_probability_for_any_numbers(left, right):
    found = compare(left, right)
    assert 0 <= found.p <= 1
    assert compare([0.0] * 7, right) is None


def test_a_difference_that_does_not_matter_is_no_reason():
    control = [100.0 + number / 100 for number in range(500)]
    assert compare([value + 5 for value in control], control).p < 1e-6
    assert not compare([value + 5 for value in control], control).worse(0.01)


# --- states -----------------------------------------------------------------------------------------------------------


def test_no_machine_aborts_and_what_ended_stays_ended():
    assert move(State.RUNNING, Event.STOP) is State.PAUSED
    assert {state for state, _ in TABLE} | ENDED == set(State)
    for state in ENDED:
        for event in Event:
            with pytest.raises(ConflictError, match="cannot"):
                move(state, event)
    for state in set(State) - {State.APPROVED, State.PAUSED}:
        for event in (Event.START, Event.RESUME):
            assert TABLE.get((state, event)) not in OFFERING


# --- decisions --------------------------------------------------------------------------------------------------------


def test_batches_grow_and_end_with_the_fleet():
    assert Plan(1_000_000).batches() == (20, 220, 10_000, 50_000, 200_000, 1_000_000)
    assert Plan(5).batches() == (5,)
    assert Plan(300).batches() == (20, 220, 300)
    assert sizes_in_words(Plan(300).batches()) == "20, 220 and 300"


@given(devices=st.integers(1, 10_000_000))
def test_batches_of_any_fleet_rise(devices):
    batches = Plan(devices).batches()
    assert list(batches) == sorted(set(batches))
    assert batches[-1] == devices


counts = st.integers(0, 3000)


@given(st.tuples(counts, counts, counts, counts), st.integers(1, 5000), st.booleans())
def test_a_decision_never_goes_on_without_data(numbers, limit, trusted):
    good, failed, silent, pending = numbers
    plan = Plan(10_000)
    tally = Tally(good + failed + silent + pending, good, failed, silent)
    progress = Progress(limit=limit, batch=1, trusted_at=(0, 0) if trusted else None)
    found = decide(plan, progress, tally)
    if found.action is Action.OFFER:
        assert tally.pending == 0
        assert tally.offered >= limit
        assert limit < found.progress.limit <= plan.devices
        if found.progress.limit > plan.canary_end + 2000:
            assert found.progress.trusted_at is not None
    assert found.why


def test_silence_counts_as_failure():
    plan = Plan(1000)
    progress = Progress(limit=20)
    silent = decide(plan, progress, Tally(20, 12, 0, silent=8))
    assert silent.action is Action.STOP
    assert "8 of them silently" in silent.why


def test_a_sick_control_group_stops_because_nothing_can_be_concluded():
    found = decide(Plan(10_000), Progress(limit=20), Tally(20, 20, 0, control=500, control_failed=60))
    assert found.action is Action.STOP
    assert "nothing can be concluded" in found.why


def test_a_slower_release_stops_with_its_reason_in_words():
    comparisons = {"pi5 first_token_ms": Comparison(1e-9, 1.8), "x86 first_token_ms": None}
    found = decide(Plan(10_000), Progress(limit=20), Tally(20, 20, 0), comparisons)
    assert found.action is Action.STOP
    assert found.why.startswith("pi5 first_token_ms is 1.80 times")
    assert (
        decide(Plan(10_000), Progress(limit=20), Tally(20, 20, 0), {"a": Comparison(1e-9, 1.01)}).action is Action.OFFER
    )


def test_the_canary_is_extended_until_it_can_say_yes():
    progress = Progress(limit=220, batch=1)
    found = decide(Plan(1_000_000), progress, Tally(220, 219, 1))
    assert found.action is Action.OFFER
    assert found.progress.limit == 275
    assert found.progress.trusted_at is None


# --- whole rollouts ---------------------------------------------------------------------------------------------------


def test_a_brick_costs_the_first_batch_and_nothing_else():
    outcome = simulate(Plan(1_000_000), World(1.0, silent=1.0), seed=1)
    assert (outcome.state, outcome.exposed) == (State.PAUSED, 20)


def test_a_bad_release_meets_few_devices_of_a_million():
    outcomes = [simulate(Plan(1_000_000), World(0.02), seed) for seed in range(60)]
    assert all(outcome.state is State.PAUSED for outcome in outcomes)
    assert statistics.mean(outcome.exposed for outcome in outcomes) <= 1000


def test_a_good_release_reaches_everybody():
    outcomes = [simulate(Plan(3000), World(0.005), seed) for seed in range(60)]
    assert all((outcome.state, outcome.exposed) == (State.DONE, 3000) for outcome in outcomes)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_good_release_is_paused_in_at_most_one_of_a_hundred():
    outcomes = [simulate(Plan(10_000), World(0.005), seed) for seed in range(1500)]
    assert statistics.mean(outcome.state is State.PAUSED for outcome in outcomes) <= 0.01


def test_silent_failures_alone_do_not_stop_a_good_release():
    """They are counted last, all together: a test that takes their order for news would see a wave of failures."""
    outcome = simulate(Plan(60_000), World(0.005, silent=1.0), seed=4)
    assert outcome.state is State.DONE


def test_a_seed_is_a_rollout():
    first, second = (simulate(Plan(5000), World(0.02), 9) for _ in range(2))
    assert first == second
    assert dataclasses.astuple(first) != dataclasses.astuple(simulate(Plan(5000), World(0.02), 10))
