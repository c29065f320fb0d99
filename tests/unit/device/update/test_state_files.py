"""The files of an update's state: whatever lies there is read as what was written, or refused by name."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from casemate.crypto.secret import Secret
from casemate.device.update import generation as records
from casemate.device.update import sealed_file
from casemate.device.update import state as states
from casemate.device.update.generation import item_of
from casemate.device.update.state import Claim, State
from casemate.device.update.states import TABLE, Event, Phase
from casemate.errors import CasemateError, NotFoundError, UntrustedDataError, UsageError
from casemate.formats.channel_set import Member
from casemate.formats.manifest import File, Requires, SealedPart
from support import generations

KEY = Secret(b"k" * 32)
BODY = b'{"schema":1}'


def check_of(act, *arguments) -> str:
    with pytest.raises(UntrustedDataError) as refused:
        act(*arguments)
    return refused.value.check


# --- the seal -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.text(st.characters(codec="ascii"), max_size=20))
def test_what_was_sealed_opens(body, label):
    assert sealed_file.unseal(KEY, label, sealed_file.seal(KEY, label, body)) == body


@pytest.mark.parametrize("at", range(len(sealed_file.seal(KEY, "state", BODY))))
def test_every_flipped_byte_is_found(at):
    raw = bytearray(sealed_file.seal(KEY, "state", BODY))
    raw[at] ^= 0x01
    assert check_of(sealed_file.unseal, KEY, "state", bytes(raw)).startswith("update-file-")


@pytest.mark.parametrize("size", range(len(sealed_file.seal(KEY, "state", BODY))))
def test_every_truncation_is_found(size):
    assert check_of(sealed_file.unseal, KEY, "state", sealed_file.seal(KEY, "state", BODY)[:size]) == "update-file-torn"


@given(st.binary(max_size=400))
def test_no_bytes_are_taken_for_a_sealed_file(raw):
    assert check_of(sealed_file.unseal, KEY, "state", raw) == "update-file-torn"


def test_another_key_or_label_is_not_ours():
    raw = sealed_file.seal(KEY, "generation 1", BODY)
    assert check_of(sealed_file.unseal, KEY, "generation 2", raw) == "update-file-mac"
    assert check_of(sealed_file.unseal, Secret(b"x" * 32), "generation 1", raw) == "update-file-mac"


def test_a_right_checksum_is_no_seal():
    """The control for the MAC: who can write and not read the key can make a checksum."""
    raw = sealed_file.seal(Secret(b"x" * 32), "state", BODY)
    assert check_of(sealed_file.unseal, KEY, "state", raw) == "update-file-mac"


# --- the state ------------------------------------------------------------------------------------------------------


def walk(events: list[tuple[Event, int]]) -> State:
    """Return where *events* lead; those that make no sense change nothing."""
    state = State()
    for event, number in events:
        try:
            state = ACTS[event](state, number)
        except CasemateError:
            continue
    return state


ACTS = {
    Event.CHECKED: lambda state, number: states.checked(state, generations.content(number), ("saffron",)),
    Event.WITHDRAWN: lambda state, _: states.withdrawn(state, "gone"),
    Event.FETCHING: lambda state, _: states.fetching(state),
    Event.STAGED: lambda state, _: states.staged(state, state.pending),
    Event.ARMED: lambda state, _: states.armed(state),
    Event.STARTED: lambda state, _: states.started(state),
    Event.PASSED: lambda state, number: states.passed(state, state.trial, number),
    Event.SOAKED: lambda state, _: states.soaked(state),
    Event.FAILED: lambda state, _: states.failed(state, "bad\n" * 300),
    Event.ROLLED_BACK: lambda state, number: states.rolled_back(state, "no", generations.content(number)),
}
EVENTS = st.lists(st.tuples(st.sampled_from(Event), st.integers(1, 6)), max_size=60)
A_GOOD_ONE = [(event, 1) for event in (Event.CHECKED, Event.FETCHING, Event.STAGED, Event.ARMED, Event.STARTED)]


def test_every_event_has_an_act():
    assert set(ACTS) == set(Event) == {event for _, event in TABLE}


@given(EVENTS)
@example(A_GOOD_ONE)
def test_wherever_events_lead_the_state_is_written_and_read_as_it_is(events):
    state = walk(events)
    assert states.parse(states.encode(state)) == state
    assert state.last_error.isprintable()


@given(EVENTS, EVENTS)
def test_what_was_good_stays_until_another_is_good_or_somebody_goes_back(before, after):
    state = walk(before)
    for event, number in after:
        old = state
        try:
            state = ACTS[event](state, number)
        except CasemateError:
            continue
        if state.good != old.good:
            assert event in (Event.PASSED, Event.ROLLED_BACK)
            assert state.good in (old.trial, old.previous)
        assert set(old.denied) <= set(state.denied)
        assert state.next >= old.next
        assert old.content not in state.denied or event in (Event.FAILED, Event.ROLLED_BACK)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_parser_of_states(raw):
    try:
        states.parse(raw)
    except UntrustedDataError as error:
        assert error.check == "update-state-form"


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "GOOD"},
        {"phase": "TRIAL"},
        {"trial": 1, "next": 2},
        {"phase": "TRIAL", "trial": 1, "next": 2, "tries": 1},
        {"phase": "ARMED", "trial": 1, "next": 2, "tries": 2, "content": "0" * 64},
        {"phase": "STAGED", "pending": 1, "content": "0" * 64},
        {"pending": 1, "next": 2, "content": "0" * 64},
        {"tries": 3},
        {"tries": 4},
        {"previous": 1, "next": 2},
        {"good": 1, "previous": 1, "next": 2, "phase": "GOOD"},
        {"good": 5, "next": 2, "phase": "GOOD"},
        {"soak_until": 5},
        {"content": "0" * 64},
        {"good": -1},
        {"next": 0},
        {"phase": "SOMETHING"},
        {"more": 1},
        {"schema": 2},
        {"denied": ["x"]},
    ],
)
def test_a_state_that_contradicts_itself_is_refused(change):
    raw = msgspec.json.encode({**msgspec.to_builtins(State()), **change})
    assert check_of(states.parse, raw) == "update-state-form"


def test_the_list_of_what_failed_is_bounded_and_forgets_the_oldest():
    state = State()
    for number in range(states.DENIED_LIMIT + 5):
        state = states.failed(states.checked(state, generations.content(number), ()), "bad")
    assert len(state.denied) == states.DENIED_LIMIT
    assert state.denied[-1] == generations.content(states.DENIED_LIMIT + 4)
    assert states.parse(states.encode(state)) == state


def test_more_claims_than_fit_are_refused_before_they_are_written():
    claims = tuple(Claim(f"m{number}", 1) for number in range(2000))
    assert check_of(states.encode, msgspec.structs.replace(State(), claims=claims)) == "update-state-form"


def test_going_back_with_nothing_before_is_said():
    with pytest.raises(NotFoundError):
        states.rolled_back(State(), "no", "")
    with pytest.raises(NotFoundError):
        states.soaked(State())
    with pytest.raises(UsageError):
        states.failed(State(), "no")


# --- the record -----------------------------------------------------------------------------------------------------

RECORD, _ = generations.generation(7, 3)


def test_a_record_is_read_as_it_was_written():
    assert records.parse(records.encode(RECORD)) == RECORD


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_parser_of_records(raw):
    assert check_of(records.parse, raw) == "generation-form"


@pytest.mark.parametrize(
    "path", ["../x", "a/../x", "/etc/passwd", "a//b", "./a", "a/", "a\\b", "a\nb", "\x00", "a/./b", "\u202ea"]
)
def test_a_path_that_leads_elsewhere_is_refused(path):
    app, model = RECORD.items
    spoiled = msgspec.structs.replace(app, files=(File(path, 0, "0" * 64),))
    assert check_of(records.encode, msgspec.structs.replace(RECORD, items=(spoiled, model))) == "generation-form"


@pytest.mark.parametrize(
    "items",
    [
        lambda app, model: (app, app),
        lambda app, model: (msgspec.structs.replace(app, container="x"), model),
        lambda app, model: (app, msgspec.structs.replace(model, container="")),
        lambda app, model: (app, msgspec.structs.replace(model, container="../x")),
        lambda app, model: (),
        lambda app, model: (msgspec.structs.replace(app, files=app.files[:1] * 2), model),
        lambda app, model: (msgspec.structs.replace(app, files=(*app.files, File("js", 0, "0" * 64))), model),
    ],
)
def test_a_record_that_cannot_be_a_generation_is_refused(items):
    assert check_of(records.encode, msgspec.structs.replace(RECORD, items=items(*RECORD.items))) == "generation-form"


def test_an_item_is_of_the_release_that_the_channel_offers():
    member = Member("model", "saffron", "2", 3, "1" * 32, "2" * 64)
    part = SealedPart(1, "1" * 32, "model", "saffron", "2", 3, (File("a.gguf", 1, "0" * 64),), ())
    item = item_of(member, part, requires=Requires(runtime="llama"), container="saffron.g1")
    assert (item.artefact, item.security_version, item.runtime) == ("model/saffron", 3, "llama")
    for field, value in {"version": "1", "security_version": 9, "release": "9" * 32, "name": "other"}.items():
        other = msgspec.structs.replace(part, **{field: value})
        with pytest.raises(UntrustedDataError):
            item_of(member, other, requires=Requires(), container="saffron.g1")


def test_phases_are_what_scripts_read():
    assert [str(phase) for phase in Phase] == [
        "IDLE", "CHECKED", "FETCHING", "STAGED", "ARMED", "TRIAL", "GOOD", "FLOOR_RAISED", "ROLLED_BACK",
    ]  # fmt: skip
