"""Whoever steals the fleet's server, with the director's key, tries to have devices run what he likes.

Every attack has its control: the same device takes the same kind of pick when it names what release keys signed.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import msgspec
import pytest

from casemate import __version__
from casemate.crypto.signing import SigningKey
from casemate.device.directed import Follower, Stand
from casemate.device.fleet import direction, enrol, membership, orders
from casemate.device.fleet.direction import FILE, Direction
from casemate.device.fleet.membership import Member
from casemate.device.fleet.orders import OrdersFile
from casemate.device.home import Home
from casemate.device.update import offer as offering
from casemate.device.update.floors import Floors
from casemate.device.update.pace import NotNowError
from casemate.errors import PolicyDeniedError
from casemate.formats import director, ipc
from casemate.formats.director import Choice, Pick
from support import mirror, published

FLEET, DEVICE = "ab" * 16, "00000000-0000-4000-8000-00000000000a"
OTHER = "00000000-0000-4000-8000-00000000000b"
KEY, STRANGER = SigningKey.generate(), SigningKey.generate()
NOW = int(time.time())
MEMBER = Member(1, FLEET, DEVICE, "https://fleet", KEY.public, "witness", NOW, KEY.public)
CHOICE = Choice("stable", 1, "a" * 64, "b" * 64, 100)


def pick(**changes) -> Pick:
    good = Pick(1, FLEET, DEVICE, 5, "take", NOW, NOW + 3600, CHOICE)
    return msgspec.structs.replace(good, **changes)


@pytest.fixture(scope="module")
def offer(tmp_path_factory):
    """What a device reads from a real repository."""
    directory = tmp_path_factory.mktemp("director")
    repository = published.create(directory / "repository")
    published.put(repository, directory / "made", "1.0.0", security=3)
    with mirror.serving(repository.public) as site, published.transport(site.url) as source:
        published.follow(directory / "device", repository, site.url)
        return offering.read_offer(published.client(directory / "device", source), "stable")


def named(offer, **changes) -> Choice:
    found = offer.verified
    good = Choice(found.set.channel, found.set.generation, found.set.content_digest, found.sha256, 1)
    return msgspec.structs.replace(good, **changes)


def takes(offer, choice, **changes) -> bool:
    return offering.is_picked(offer, Direction(directed=True, pick=pick(choice=choice, **changes)), 600)


@pytest.mark.parametrize("field", ["channel", "content", "sha256"])
def test_a_director_cannot_name_anything_but_what_release_keys_signed(offer, field):
    other = "nightly" if field == "channel" else "f" * 64
    assert not takes(offer, named(offer, **{field: other}))
    assert takes(offer, named(offer))


def test_a_director_cannot_send_a_device_below_its_floor(offer):
    assert takes(offer, named(offer))
    floors = Floors(security={"model/tiny": 4})
    with pytest.raises(PolicyDeniedError, match="goes no lower than 4"):
        offering.require_acceptable(offer, floors, (), __version__, held=())
    offering.require_acceptable(offer, Floors(security={"model/tiny": 3}), (), __version__, held=())


def test_nothing_is_taken_without_a_pick_outside_its_window_or_when_it_says_keep(offer):
    assert not offering.is_picked(offer, Direction(directed=True), 600)
    assert not takes(offer, None, action="keep")
    with pytest.raises(NotNowError, match="opens at 11:00"):
        takes(offer, named(offer), window=(660, 720))
    assert takes(offer, named(offer), window=(590, 720))
    assert takes(offer, named(offer), window=(1380, 601))  # past midnight
    assert offering.is_picked(offer, direction.FREE, 600)  # a device that no fleet directs goes by its channel


class Machine:
    def __init__(self):
        self.clock = SimpleNamespace(wall=lambda: float(NOW))
        self.journaled, self.told = [], []

    def tell_link(self, message):
        self.told.append(message)

    def record(self, *events):
        self.journaled += events


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    made.create()
    return made


def follower(home, machine=None):
    return Follower(machine or Machine(), home, MEMBER, running="", earliest=float(NOW))


def hand(one, made, key=KEY, earliest=NOW):
    one.picked(ipc.Picked(director.sign_pick(made, key), float(earliest)), float(earliest))
    return one.direction.pick


@pytest.mark.parametrize(
    ("changes", "key", "check"),
    [
        ({}, STRANGER, "envelope-signature"),
        ({"device": OTHER}, KEY, "pick-device"),
        ({"fleet": "cd" * 16}, KEY, "pick-fleet"),
        ({"sequence": 4}, KEY, "pick-sequence"),
        ({"issued": NOW - 7200, "expires": NOW - 60}, KEY, "pick-expired"),
        ({"expires": NOW + 40 * 86_400}, KEY, "pick-form"),
        ({"choice": None}, KEY, "pick-form"),
    ],
)
def test_a_pick_that_is_forged_foreign_old_or_endless_changes_nothing(home, changes, key, check):
    machine = Machine()
    one = follower(home, machine)
    first = hand(one, pick(sequence=5, action="keep", choice=None))
    assert hand(one, pick(**{"sequence": 6, **changes}), key) == first
    assert machine.journaled[-1]["unmapped"]["check"] == check
    assert hand(one, pick(sequence=6)).sequence == 6


def test_a_damaged_or_expired_pick_is_a_refusal_and_not_freedom(home):
    hand(follower(home), pick())
    assert direction.standing(home, MEMBER, NOW)[1].pick is not None
    assert direction.standing(home, MEMBER, NOW + 7200)[1] == Direction(directed=True)
    (home.fleet / FILE).write_bytes(b"{")
    assert direction.standing(home, MEMBER, NOW)[1] == Direction(directed=True)
    assert direction.standing(home, msgspec.structs.replace(MEMBER, director=None), NOW)[1] == direction.FREE


def test_taking_the_pick_away_frees_no_device(home, offer):
    membership.write_member(home, MEMBER)
    free = direction.standing(home, membership.read_member(home), NOW)[1]
    assert offering.is_picked(offer, free, 600)  # never directed
    hand(follower(home), pick())
    (home.fleet / FILE).unlink()
    left = membership.read_member(home)
    assert not offering.is_picked(offer, direction.standing(home, left, NOW)[1], 600)
    again = Follower(Machine(), home, left, running="", earliest=float(NOW))
    assert again.direction == Direction(directed=True)
    assert hand(again, pick(sequence=6)).sequence == 6  # the fleet's next pick directs it again


def test_a_device_that_was_directed_before_its_membership_said_so_is_marked_when_it_starts(home):
    membership.write_member(home, MEMBER)
    direction.PickFile(home).write(direction.Record(pick=director.sign_pick(pick(), KEY)))
    follower(home)
    (home.fleet / FILE).unlink()
    assert direction.standing(home, membership.read_member(home), NOW)[1] == Direction(directed=True)


def test_what_one_fleet_said_directs_nobody_after_leaving_it(home):
    membership.write_member(home, MEMBER)
    OrdersFile(home).write(orders.first(NOW))
    hand(follower(home), pick())
    assert enrol.leave(home, SimpleNamespace(wall=lambda: float(NOW))).directed
    membership.write_member(home, MEMBER)
    assert direction.standing(home, membership.read_member(home), NOW) == (
        direction.Record(),
        direction.FREE,
    )


def test_what_was_refused_before_any_try_is_said_once_and_asked_for_again(home):
    """A device that could not prove itself for a gated model has failed, and takes it once it can."""
    machine = Machine()
    one = follower(home, machine)
    content = hand(one, pick()).choice.content
    for _ in range(2):
        one.stands(Stand(content=content, outcome="failed", why="the fleet gives no key"))
    assert len(machine.told) == 1
    assert one._unfinished()
    one.stands(Stand(running=content, content=content, outcome="good"))
    assert len(machine.told) == 2
    assert not one._unfinished()
    tried = follower(home)  # the control: what failed its tries is not asked for again
    tried.stands(Stand(content=content, outcome="failed", why="the smoke prompt", tries=3))
    assert not tried._unfinished()


def test_a_word_is_owed_until_the_fleet_has_it_also_over_a_restart(home):
    machine = Machine()
    one = follower(home, machine)
    hand(one, pick())
    one.stands(msgspec.convert({"running": "", "content": CHOICE.content, "outcome": "failed"}, type=Stand))
    again = follower(home, machine)
    again.owe()
    assert [type(each) for each in machine.told] == [ipc.SendWord, ipc.SendWord]
    again.sent(ipc.WordSent(payload=machine.told[0].payload, accepted=True))
    machine.told.clear()
    follower(home, machine).owe()
    assert machine.told == []
