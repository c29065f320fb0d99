"""The state machine of commands, and the file that remembers it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.fleet import membership, orders
from casemate.device.fleet.orders import NEXT, OrdersFile, State
from casemate.device.home import Home
from casemate.errors import PolicyDeniedError, UntrustedDataError
from casemate.formats.envelope import Command, Verb, VerifiedCommand

FLEET, DEVICE = "ab" * 16, "00000000-0000-4000-8000-00000000000a"
VERBS = st.sampled_from(list(Verb))


def verified(verb: Verb, sequence: int = 1, issued: int = 100) -> VerifiedCommand:
    return VerifiedCommand(Command(1, FLEET, DEVICE, sequence, verb, issued, issued + 60, "why"), verb, "00" * 32)


def after(*verbs: Verb) -> orders.Orders:
    found = orders.first(50)
    for sequence, verb in enumerate(verbs, 1):
        found = orders.obey(found, verified(verb, sequence), str(sequence), 7.5)
    return found


def test_every_state_has_a_row():
    assert set(NEXT) == set(State)


def test_a_quarantine_holds_until_a_release():
    held = after(Verb.QUARANTINE)
    assert (held.state, held.reason, held.since) == (State.QUARANTINED, "why", 7)
    assert after(Verb.QUARANTINE, Verb.PING, Verb.ATTEST, Verb.QUARANTINE).state is State.QUARANTINED
    assert after(Verb.QUARANTINE, Verb.RELEASE).state is State.SERVING


@given(st.lists(VERBS))
def test_nothing_leads_out_of_a_wipe(verbs):
    wiping = after(Verb.QUARANTINE, Verb.WIPE, *verbs)
    assert wiping.state is State.WIPING
    assert wiping.last
    assert (wiping.last.outcome == "done") == (not verbs or verbs[-1] is Verb.WIPE)


def test_a_wipe_is_over_once_it_is_proven_and_not_before():
    wiping = after(Verb.WIPE)
    assert orders.answered(wiping, "99") is wiping
    done = orders.answered(wiping, "1")
    assert (done.state, done.owed) == (State.WIPED, False)
    orders.require_not_wiped(wiping)
    with pytest.raises(PolicyDeniedError):
        orders.require_not_wiped(done)


@given(st.lists(st.tuples(VERBS, st.integers(1, 100), st.integers(0, 100))))
def test_sequence_and_signed_time_only_rise(steps):
    found = orders.first(50)
    for verb, sequence, issued in steps:
        following = orders.obey(found, verified(verb, sequence, issued), "n", 0)
        assert following.sequence >= max(found.sequence, sequence)
        assert following.signed >= max(found.signed, issued)
        found = following


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home").create()


def test_the_file_says_what_was_written(home):
    file = OrdersFile(home)
    file.write(after(Verb.QUARANTINE))
    assert file.read() == after(Verb.QUARANTINE)
    assert file.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [None, b"", b"{}", b'{"schema":1,"state":"serving"}', b"\xff", b"[" * 100_000])
def test_missing_or_damaged_orders_are_never_no_orders(home, data):
    if data is not None:
        (home.fleet / orders.FILE).write_bytes(data)
    with pytest.raises(UntrustedDataError) as caught:
        OrdersFile(home).read()
    assert caught.value.check == "fleet-orders"


def test_a_damaged_member_file_is_not_an_unenrolled_device(home):
    assert membership.read_member(home) is None
    (home.fleet / membership.MEMBER).write_bytes(b"{")
    with pytest.raises(UntrustedDataError):
        membership.read_member(home)


def test_a_membership_is_written_whole_and_forgotten_whole(home):
    member = membership.Member(1, FLEET, DEVICE, "https://fleet:1", bytes(32), "w+00+x", 5)
    place = membership.Place(1, "https://fleet:2", b"root")
    membership.write_identity(home, place, key=b"key", certificate=b"crt")
    assert not membership.is_member(home)
    membership.write_member(home, member)
    assert membership.read_member(home) == member
    assert membership.read_place(home.link) == place
    membership.forget(home)
    assert not membership.is_member(home)
    assert not list(home.link.iterdir())


def test_destroying_overwrites_what_other_names_still_reach(tmp_path):
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_bytes(b"the key" * 1000)
    other.hardlink_to(secret)
    assert membership.overwrite_and_remove(secret)
    assert not secret.exists()
    assert b"the key" not in other.read_bytes()
    assert len(other.read_bytes()) == 7000
    assert not membership.overwrite_and_remove(secret)


def test_a_state_file_of_a_newer_schema_is_refused(home):
    newer = msgspec.json.encode({**msgspec.to_builtins(after()), "schema": 2})
    (home.fleet / orders.FILE).write_bytes(newer)
    with pytest.raises(UntrustedDataError):
        OrdersFile(home).read()
