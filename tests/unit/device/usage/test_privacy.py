"""The mechanisms have the probabilities they claim, and the ledger is never overrun."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from casemate.device.usage import randomize
from casemate.device.usage.ledger import CAP, WINDOW, Ledger, Spend, epsilon_of, rho_of
from casemate.device.usage.randomize import bucket_of, oue, warner
from casemate.errors import PolicyDeniedError
from casemate.formats import usage
from casemate.formats.usage import EPSILON, QUESTIONS, Coin


def chances(seed):
    return random.Random(seed).randrange


def in_turn(throws):
    left = iter(throws)
    return lambda _: next(left)


@given(st.floats(0.01, 16))
def test_a_coin_never_costs_more_than_was_asked_for(epsilon):
    coin = Coin.of(epsilon)
    assert coin.epsilon <= epsilon + 1e-12
    assert coin.epsilon >= epsilon * 0.98 - 1e-6


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 17.0, math.nan])
def test_a_coin_without_meaning_is_refused(epsilon):
    with pytest.raises(ValueError):
        Coin.of(epsilon)


def test_each_answer_of_the_coin_is_as_likely_as_it_must_be_by_counting_every_throw(monkeypatch):
    """Every throw of a small coin, counted: the ratio of the two values' probabilities is e^epsilon, not more."""
    monkeypatch.setattr(randomize, "WHOLE", 64)
    coin = Coin(47)  # e^1 / (1 + e^1) of 64, rounded down
    said = {bit: sum(warner(bit, coin, lambda _, t=throw: t) for throw in range(64)) for bit in (True, False)}
    assert said == {True: 47, False: 17}
    assert said[True] / said[False] <= math.e * 1.02


def test_a_histogram_is_estimated_without_bias():
    buckets, n, epsilon = 4, 6000, 1.0
    shares = [0.5, 0.3, 0.15, 0.05]
    below = chances(3)
    draw = random.Random(4)
    counts = [0] * buckets
    for _ in range(n):
        mask = oue(draw.choices(range(buckets), shares)[0], buckets, epsilon, below)
        for index in range(buckets):
            counts[index] += mask >> index & 1
    q = 1 / (math.e**epsilon + 1)
    estimates = [(count - n * q) / (0.5 - q) / n for count in counts]
    for estimate, share in zip(estimates, shares, strict=True):
        assert abs(estimate - share) < 4 * math.sqrt(4 * math.e / (math.e - 1) ** 2 / n)


def test_two_values_differ_in_two_bits_of_a_histogram_and_their_odds_are_bounded(monkeypatch):
    monkeypatch.setattr(randomize, "WHOLE", 16)
    monkeypatch.setattr(usage, "WHOLE", 16)
    epsilon = math.log(3)
    odds = {}
    for bucket in range(2):
        seen = {}
        for throws in itertools.product(range(16), repeat=2):
            mask = oue(bucket, 2, epsilon, in_turn(throws))
            seen[mask] = seen.get(mask, 0) + 1
        odds[bucket] = seen
    for mask in odds[0]:
        assert odds[0][mask] / odds[1][mask] <= 3 + 1e-9


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_what_is_said_has_the_chances_that_the_server_reckons_with(question):
    """Chi-square, one degree of freedom for each bit of an answer: beyond 30 once in ten million."""
    n, below = 4000, chances(17)
    p, q = question.chances
    for bucket in range(len(question.answers)):
        ones = [0] * len(question.answers)
        for _ in range(n):
            said = randomize.answer(question, bucket, below)
            report = usage.VerifiedReport(1, question, said)
            ones = [old + new for old, new in zip(ones, report.bits, strict=True)]
        for index, seen in enumerate(ones):
            expected = n * (p if index == bucket else q)
            square = (seen - expected) ** 2 * n / (expected * (n - expected))
            assert square < 30


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_no_report_is_e_to_the_epsilon_times_as_likely_for_another_truth(question):
    """Every report of every question: what the thresholds say, exactly."""
    p, q = question.chances
    width = len(question.answers)

    def likelihood(said, bucket):
        if question.yes_or_no:
            return p if said == bucket else q
        bits = [said >> index & 1 for index in range(width)]
        each = [p if index == bucket else q for index in range(width)]
        return math.prod(c if bit else 1 - c for bit, c in zip(bits, each, strict=True))

    for said in range(question.reports):
        told = [likelihood(said, bucket) for bucket in range(width)]
        assert max(told) / min(told) <= math.exp(EPSILON) * (1 + 1e-9)
    assert all(math.isclose(sum(likelihood(said, b) for said in range(question.reports)), 1) for b in range(width))


def test_buckets_cover_every_value():
    edges = (10, 100)
    assert [bucket_of(value, edges) for value in (0, 10, 11, 100, 1e9)] == [0, 0, 1, 1, 2]
    with pytest.raises(ValueError):
        oue(3, 3, 1.0)


# --- the ledger -------------------------------------------------------------------------------------------------------


class LedgerNeverOverruns(RuleBasedStateMachine):
    """Any reports at any times, clocks that go back too: what any thirty days cost stays below the cap."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.now = 1_800_000_000
        self.made = []
        self.latest = 0

    @rule(seconds=st.integers(0, 40 * 86400))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(seconds=st.integers(0, 3 * 86400))
    def the_clock_goes_back(self, seconds):
        self.now -= seconds

    @rule(epsilon=st.floats(0.01, 1.2))
    def report(self, epsilon):
        try:
            self.ledger = self.ledger.spend("requests", epsilon, self.now)
        except PolicyDeniedError:
            assert rho_of(epsilon) > self.ledger.left(self.now)
        else:
            self.latest = max(self.latest, self.now)
            self.made.append((self.latest, rho_of(epsilon)))

    @invariant()
    def no_overrun(self):
        assert self.ledger.spent(self.now) <= CAP + 1e-9
        for end, _ in self.made:
            assert math.fsum(rho for time, rho in self.made if end - WINDOW < time <= end) <= CAP + 1e-9


TestLedger = LedgerNeverOverruns.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_month_of_reports_costs_what_people_are_told():
    assert math.isclose(epsilon_of(0.6), 6.36, abs_tol=0.01)
    assert math.isclose(rho_of(1.0), 0.5)


def test_a_spend_from_the_future_counts():
    spent = Ledger(spends=(Spend(10, "a", 0.6),))
    assert spent.left(5) == 0.0
    with pytest.raises(PolicyDeniedError):
        spent.spend("requests", 1.0, 5)
