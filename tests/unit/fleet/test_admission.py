"""Who has to wait: bounds, spread, and that nobody is forgotten or held for another's doing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from casemate.fleet.admission import LONGEST_WAIT, SHORTEST_WAIT, WINDOW, Addresses, LaterError, Load, network_of


def refused(load, now):
    with pytest.raises(LaterError) as caught:
        load.enter(now)
    return caught.value.seconds


def test_as_many_as_there_is_room_for():
    load = Load(lambda: 0.5, limit=2)
    load.enter(1.0)
    load.enter(1.0)
    assert SHORTEST_WAIT <= refused(load, 1.0) <= LONGEST_WAIT
    load.leave()
    load.enter(1.0)
    assert load.inside == 2


def test_ten_thousand_are_spread_over_the_time_that_serving_them_takes():
    draw = random.Random(7).random
    load = Load(draw, limit=1)
    now = 100.0
    for _ in range(1000):  # a hundred a second
        load.enter(now)
        load.leave()
        now += WINDOW / 1000
    load.enter(now)
    waits = [refused(load, now) for _ in range(10_000)]
    assert max(waits) > 150  # ten thousand at a hundred a second: not before a hundred seconds, and not all then
    assert min(waits) >= SHORTEST_WAIT
    late = waits[-1000:]
    assert sum(wait < 20 for wait in late) < 150


class Crowd(RuleBasedStateMachine):
    """Any order of coming and going."""

    def __init__(self):
        super().__init__()
        self.load = Load(random.Random(1).random, limit=5)
        self.now = 0.0
        self.inside = 0

    @rule(seconds=st.floats(0, 100))
    def passes(self, seconds):
        self.now += seconds

    @rule()
    def comes(self):
        try:
            self.load.enter(self.now)
        except LaterError as error:
            assert self.inside == 5
            assert SHORTEST_WAIT <= error.seconds <= LONGEST_WAIT
        else:
            self.inside += 1

    @precondition(lambda self: self.inside)
    @rule()
    def goes(self):
        self.load.leave()
        self.inside -= 1

    @invariant()
    def counts(self):
        assert self.load.inside == self.inside <= 5


TestCrowd = Crowd.TestCase


def test_an_address_runs_dry_and_fills_again_and_is_nobody_elses():
    found = Addresses(rate=0.5, burst=3)
    assert [found.take("10.0.0.1", 0.0) for _ in range(4)] == [True, True, True, False]
    assert not found.has("10.0.0.1", 0.0)
    assert found.seconds("10.0.0.1", 0.0) == 2.0
    assert found.has("10.0.0.2", 0.0)
    assert found.take("10.0.0.1", 2.0)
    assert not found.take("10.0.0.1", 2.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5))))
def test_nobody_gets_more_than_the_rate(calls):
    found, now, given_out = Addresses(rate=1.0, burst=2.0), 0.0, dict.fromkeys(range(4), 0)
    for who, seconds in calls:
        now += seconds
        given_out[who] += found.take(f"10.0.0.{who}", now)
    assert all(count <= 2 + now + 1e-6 for count in given_out.values())


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_one_caller_is_an_address_or_a_64(address, network):
    assert network_of(address) == network
