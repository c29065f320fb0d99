"""The restart table, over any sequence of lives and deaths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casemate.device.supervisor import FIRST_DELAY, LIMIT, LONGEST_DELAY, WINDOW, RestartPolicy, State


@given(st.lists(st.tuples(st.floats(0, 2000), st.booleans()), max_size=30))
def test_delays_are_bounded_and_the_limit_holds_for_any_history(history):
    policy, now = RestartPolicy(), 0.0
    for alive_for, transient in history:
        policy.started(now)
        now += alive_for
        delay = policy.died(now, "test", transient=transient)
        if delay is None:
            assert policy.state is State.NEEDS_TRIAGE
            assert not transient or policy.failures > LIMIT
            return
        assert transient
        assert FIRST_DELAY <= delay <= LONGEST_DELAY
        assert policy.failures <= LIMIT
        now += delay


def test_back_off_doubles_then_gives_up():
    policy = RestartPolicy()
    delays = [policy.died(float(n), "crash") for n in range(LIMIT + 1)]
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, None]
    assert policy.state is State.NEEDS_TRIAGE
    assert policy.reason == "crash"


def test_ten_healthy_minutes_forget_the_failures():
    policy = RestartPolicy()
    for n in range(LIMIT):
        policy.died(float(n), "crash")
    policy.started(100.0)
    assert policy.died(100.0 + WINDOW, "crash") == FIRST_DELAY


def test_a_refusal_is_final_at_once():
    policy = RestartPolicy()
    assert policy.died(0.0, "digest mismatch", transient=False) is None
    assert policy.state is State.NEEDS_TRIAGE
