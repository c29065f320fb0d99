"""Who gets a model's key: a table of refusals, and one grant."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.fleet import keybroker
from casemate.fleet.keybroker import LEVELS, Gate, Result
from casemate.fleet.states import State

NOW = 1_800_000_000.0
GATE = Gate("L2", 3600, None)
GOOD = Result(7, "affirming", "L3", NOW - 10, NOW + 600)
change = dataclasses.replace


def test_a_fresh_affirming_result_of_an_enrolled_device_gets_the_key_for_its_lease():
    found = keybroker.decide(GATE, GOOD, State.ENROLLED, NOW)
    assert (found.granted, found.lease_s, found.reason) == (True, 3600, "L3, attestation 7")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gate": None}, "no key for this model"),
        ({"result": None}, "never attested"),
        *(
            ({"result": change(GOOD, status=status)}, "not affirming")
            for status in ("none", "warning", "contraindicated")
        ),
        ({"result": change(GOOD, status="")}, "not affirming"),
        ({"result": change(GOOD, expires=NOW)}, "expired"),
        ({"result": change(GOOD, created=NOW - 901, expires=NOW + 9999)}, "expired"),
        ({"result": change(GOOD, created=NOW + 60)}, "expired"),
        ({"gate": change(GATE, min_assurance="L3"), "result": change(GOOD, assurance="L2")}, "too low"),
        ({"result": change(GOOD, assurance="L9")}, "too low"),
        ({"gate": change(GATE, min_assurance="none")}, "too low"),
        ({"gate": change(GATE, licence_ends=NOW)}, "licence"),
        *(({"state": state}, f"is {state}") for state in State if state is not State.ENROLLED),
    ],
)
def test_everything_else_is_refused_by_name(changes, why):
    asked = {"gate": GATE, "result": GOOD, "state": State.ENROLLED, **changes}
    found = keybroker.decide(asked["gate"], asked["result"], asked["state"], NOW)
    assert not found.granted
    assert why in found.reason


def test_a_lease_does_not_outlive_the_licence():
    assert keybroker.decide(change(GATE, licence_ends=NOW + 100), GOOD, State.ENROLLED, NOW).lease_s == 100


@given(
    st.builds(Gate, st.sampled_from(LEVELS), st.integers(60, 9999), st.none() | st.floats(NOW - 99, NOW + 99)),
    st.none()
    | st.builds(
        Result,
        st.integers(1, 9),
        st.sampled_from(["none", "affirming", "warning", "contraindicated"]),
        st.sampled_from(LEVELS),
        st.floats(NOW - 2000, NOW + 99),
        st.floats(NOW - 99, NOW + 2000),
    ),
    st.sampled_from(State),
)
def test_a_grant_means_that_every_condition_holds(gate, result, state):
    if not keybroker.decide(gate, result, state, NOW).granted:
        return
    assert state is State.ENROLLED
    assert result.status == "affirming"
    assert NOW - 900 <= result.created <= NOW < result.expires
    assert LEVELS.index(result.assurance) >= LEVELS.index(gate.min_assurance)
    assert gate.licence_ends is None or gate.licence_ends > NOW
