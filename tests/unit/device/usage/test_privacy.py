"""The mechanisms have the probabilities they claim, and the ledger is never overrun."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from casemate.device.usage import ledger as ledgers
from casemate.device.usage import randomize
from casemate.device.usage.ledger import CAP, WINDOW, Ledger, Spend, epsilon_of, rho_of
from casemate.device.usage.randomize import Coin, bucket_of, geometric, oue, warner
from casemate.errors import PolicyDeniedError, UntrustedDataError


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


def test_a_count_of_ten_thousand_devices_is_right_to_a_percent():
    coin, n, truth = Coin.of(1.0), 10_000, 3000
    errors = []
    for seed in range(25):
        below = chances(seed)
        ones = sum(warner(device < truth, coin, below) for device in range(n))
        estimate = (ones - n * (1 - coin.truth)) / (2 * coin.truth - 1)
        errors.append((estimate - truth) / n)
    spread = math.sqrt(sum(error * error for error in errors) / len(errors))
    assert spread <= 0.0125, "theory: 0.96 % of n"
    assert abs(sum(errors) / len(errors)) <= 0.006


def test_each_answer_of_the_coin_is_as_likely_as_it_must_be_by_counting_every_throw(monkeypatch):
    """Every throw of a small coin, counted: the ratio of the two values' probabilities is e^epsilon, not more."""
    monkeypatch.setattr(randomize, "_WHOLE", 64)
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
    monkeypatch.setattr(randomize, "_WHOLE", 16)
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


def test_the_noise_is_the_discrete_laplace_distribution():
    below = chances(11)
    n, epsilon = 20_000, Fraction(1, 2)
    draws = [geometric(5, 1, epsilon, below) - 1 for _ in range(n)]  # 5 is clipped to 1
    ratio = math.exp(-0.5)
    for x in range(-4, 5):
        expected = (1 - ratio) / (1 + ratio) * ratio ** abs(x)
        share = sum(draw == x for draw in draws) / n
        assert abs(share - expected) < 5 * math.sqrt(expected / n)


@given(st.integers(-1000, 100_000), st.integers(1, 5000), st.fractions(Fraction(1, 10), 4))
@settings(max_examples=50)
def test_noise_is_an_integer_for_any_value(value, bound, epsilon):
    assert isinstance(geometric(value, bound, epsilon, chances(value)), int)


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
            self.ledger = ledgers.parse(ledgers.encode(self.ledger.spend("requests", epsilon, self.now)))
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


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}x", b'{"schema":1,"cap":9}', b'{"schema":1,"spends":[[1,"a",-1]]}', b'{"more":1}', b"[" * 5000, b"\xff"],
)
def test_a_ledger_that_cannot_be_believed_is_refused(raw):
    with pytest.raises(UntrustedDataError):
        ledgers.parse(raw)


def test_an_owner_may_allow_less_and_never_more():
    ledger = Ledger(cap=0.01)
    with pytest.raises(PolicyDeniedError):
        ledger.spend("requests", 1.0, 0)
    assert Ledger(spends=(Spend(10, "a", 0.6),)).left(5) == 0.0, "a spend from the future counts"
