"""Rate limits as a state machine: whatever the order of events, no window holds more than its limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from casemate.device.gateway.limits import AppLimits, Limits, Over, Reservation, SlidingWindow, TokenBucket
from casemate.formats.policy import AppPolicy


def test_a_bucket_allows_a_burst_then_an_even_flow():
    bucket = TokenBucket(60, 60.0, now=0.0)
    for _ in range(60):
        assert bucket.wait(1, 0.0) == 0
        bucket.take(1, 0.0)
    assert bucket.wait(1, 0.0) == pytest.approx(1.0)
    assert bucket.wait(1, 1.0) == 0


def test_a_window_forgets_only_what_is_wholly_older():
    window = SlidingWindow(10, 24.0)
    window.take(10, 0.0)
    assert window.wait(1, 23.9) > 0
    assert window.wait(1, 25.1) == 0


def test_the_wait_is_long_enough_and_not_endless():
    window = SlidingWindow(10, 24.0)
    for second in range(10):
        window.take(1, float(second))
    now = 10.0
    wait = window.wait(3, now)
    assert 0 < wait <= 24 + 1
    assert window.wait(3, now + wait) == 0


def test_a_clock_that_stands_still_or_jumps_back_gives_nothing_away():
    bucket = TokenBucket(10, 60.0, now=100.0)
    bucket.take(10, 100.0)
    assert bucket.wait(1, 50.0) > 0
    assert bucket.wait(1, 100.0) > 0


def limits(**numbers):
    return AppLimits(AppPolicy(**numbers), 0.0)


def test_each_limit_is_named_with_a_wait():
    app = limits(requests_per_minute=1)
    assert isinstance(app.admit(5, 0.0), Reservation)
    over = app.admit(5, 0.0)
    assert isinstance(over, Over)
    assert over.limit == "requests_per_minute"
    assert 59 < over.retry_after <= 60


def test_a_refused_request_costs_nothing():
    app = limits(requests_per_minute=10, tokens_per_minute=10)
    assert isinstance(app.admit(10, 0.0), Reservation)
    for _ in range(20):
        assert isinstance(app.admit(10, 0.0), Over)
    assert isinstance(app.admit(10, 61.0), Reservation)


def test_what_was_not_used_comes_back_and_what_was_used_beyond_is_charged():
    app = limits(tokens_per_minute=100)
    first = app.admit(90, 0.0)
    assert app.admit(20, 0.0) == Over("tokens_per_minute", pytest.approx(6.0))
    first.settle(10, 0.0)
    first.settle(0, 0.0)
    second = app.admit(90, 0.0)
    assert isinstance(second, Reservation)
    second.settle(200, 0.0)
    assert isinstance(app.admit(1, 0.0), Over)


def test_a_request_larger_than_the_whole_limit_waits_for_a_full_bucket_not_for_ever():
    app = limits(tokens_per_minute=10)
    assert isinstance(app.admit(1_000_000, 0.0), Reservation)
    assert isinstance(app.admit(1, 0.0), Over)


def test_only_so_many_at_one_time():
    app = limits(concurrent_requests=2)
    first, second = app.admit(1, 0.0), app.admit(1, 0.0)
    assert app.admit(1, 0.0) == Over("concurrent_requests", 1.0)
    first.settle(0, 0.0)
    assert isinstance(app.admit(1, 0.0), Reservation)
    second.settle(0, 0.0)


def test_an_edited_policy_is_followed_and_requests_in_work_stay_counted():
    shelf = Limits(lambda: 0.0)
    old, new = AppPolicy(concurrent_requests=2), AppPolicy(concurrent_requests=2, requests_per_minute=3)
    first = shelf.admit("a", old, 1)
    shelf.admit("a", old, 1)
    assert shelf.admit("a", new, 1) == Over("concurrent_requests", 1.0)
    shelf.settle(first, 1)
    assert isinstance(shelf.admit("a", new, 1), Reservation)
    shelf.keep(set())
    assert isinstance(shelf.admit("a", new, 1), Reservation)


class LimitsMachine(RuleBasedStateMachine):
    """Admit, settle and wait in any order; the model counts what a client really got."""

    RPM, RPD, TPM, TPD = 5, 40, 100, 600

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.app = AppLimits(
            AppPolicy(
                requests_per_minute=self.RPM,
                requests_per_day=self.RPD,
                tokens_per_minute=self.TPM,
                tokens_per_day=self.TPD,
                concurrent_requests=3,
            ),
            self.now,
        )
        self.open: list[tuple[Reservation, int]] = []
        self.admitted: list[float] = []
        self.used: list[tuple[float, int]] = []

    @rule(seconds=st.one_of(st.floats(0, 120), st.floats(0, 90_000)))
    def wait(self, seconds):
        self.now += seconds

    @rule(tokens=st.integers(1, 80))
    def admit(self, tokens):
        outcome = self.app.admit(tokens, self.now)
        if isinstance(outcome, Reservation):
            self.open.append((outcome, tokens))
            self.admitted.append(self.now)
        else:
            assert outcome.retry_after > 0

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data):
        reservation, tokens = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        used = data.draw(st.integers(0, tokens))
        reservation.settle(used, self.now)
        self.used.append((self.now, used))

    @rule(tokens=st.integers(1, 80))
    def the_wait_that_was_told_is_enough(self, tokens):
        outcome = self.app.admit(tokens, self.now)
        if isinstance(outcome, Over) and outcome.limit != "concurrent_requests":
            self.now += outcome.retry_after + 1e-6
            again = self.app.admit(tokens, self.now)
            assert not isinstance(again, Over) or again.limit == "concurrent_requests" or again.retry_after > 0
            outcome = again
        if isinstance(outcome, Reservation):
            self.open.append((outcome, tokens))
            self.admitted.append(self.now)

    @invariant()
    def never_more_at_one_time(self):
        assert self.app.concurrent == len(self.open) <= 3

    @invariant()
    def no_day_holds_more_requests_than_its_limit(self):
        assert sum(1 for at in self.admitted if at > self.now - 86_400) <= self.RPD

    @invariant()
    def no_minute_holds_more_than_a_burst_and_its_refill(self):
        assert sum(1 for at in self.admitted if at > self.now - 60) <= 2 * self.RPM

    @invariant()
    def no_day_holds_more_tokens_than_its_limit(self):
        recent = sum(used for at, used in self.used if at > self.now - 86_400)
        assert recent <= self.TPD


TestLimitsMachine = LimitsMachine.TestCase


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4)), max_size=60))
def test_a_sliding_window_never_holds_more_than_its_limit(steps):
    window, now, taken = SlidingWindow(7, 24.0), 0.0, []
    for pause, amount in steps:
        now += pause
        if window.wait(amount, now) == 0:
            window.take(amount, now)
            taken.append((now, amount))
        assert sum(count for at, count in taken if at > now - 24.0) <= 7
