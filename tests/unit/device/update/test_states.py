"""The table of an update's phases, and the page that is drawn from it."""

from __future__ import annotations

import pytest

from casemate.device.update import states
from casemate.device.update.states import PENDING, ROWS, TABLE, Event, Phase, step
from casemate.errors import BusyError, UsageError


def reachable() -> set[Phase]:
    found, rest = set(), [Phase.IDLE]
    while rest:
        phase = rest.pop()
        if phase not in found:
            found.add(phase)
            rest += [after for (before, _), after in TABLE.items() if before == phase]
    return found


def test_the_way_of_a_good_update():
    phase = Phase.IDLE
    for event in (Event.CHECKED, Event.FETCHING, Event.STAGED, Event.ARMED, Event.STARTED, Event.PASSED, Event.SOAKED):
        phase = step(phase, event)
    assert phase is Phase.FLOOR_RAISED


def test_every_phase_is_reached_and_can_be_left():
    assert reachable() == set(Phase)
    assert {before for (before, _), after in TABLE.items() if after != before} == set(Phase)


def test_no_row_says_a_thing_twice():
    said = [(phase, row.event) for row in ROWS for phase in row.phases]
    assert len(said) == len(set(said))


def test_whatever_is_under_way_can_fail_and_everything_can_be_rolled_back():
    assert {step(phase, Event.FAILED) for phase in PENDING} == {Phase.ROLLED_BACK}
    assert {step(phase, Event.ROLLED_BACK) for phase in Phase} == {Phase.ROLLED_BACK}


def test_only_a_trial_that_started_becomes_good():
    assert {before for (before, event), _ in TABLE.items() if event is Event.PASSED} == {Phase.TRIAL}
    assert {before for before, event in TABLE if event is Event.STARTED} == {Phase.ARMED, Phase.TRIAL}
    assert {before for before, event in TABLE if event is Event.ARMED} == {Phase.STAGED}


@pytest.mark.parametrize("phase", [Phase.ARMED, Phase.TRIAL])
def test_a_trial_is_not_disturbed_by_a_newer_offer(phase):
    with pytest.raises(BusyError):
        step(phase, Event.CHECKED)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError):
        step(Phase.IDLE, Event.PASSED)


def test_the_diagram_shows_every_change_of_phase():
    drawn = states.mermaid()
    for (before, event), after in TABLE.items():
        if before != after and event is not Event.ROLLED_BACK:
            assert any(
                line.strip().startswith(f"{before} --> {after}:") and event in line for line in drawn.splitlines()
            ), (before, event)
