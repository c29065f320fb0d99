"""First trust: strict about its root, bound to the floors, and the clock that does not go back."""

from __future__ import annotations

import json
import time

import pytest

from casemate.device.update import client as clients
from casemate.device.update import trust
from casemate.device.update.client import require_clock
from casemate.device.update.floors import FileFloorStore, Floors
from casemate.errors import NotFoundError, UntrustedDataError, UsageError
from support.forge import Directory, Forge, client_of

NOW = float(int(time.time()))
URL = "https://updates.example"


@pytest.fixture
def forge(tmp_path):
    return Forge(tmp_path / "public", NOW)


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "update"
    made.mkdir()
    return made


def client(directory, forge, now=NOW):
    return client_of(directory, Directory(forge.public), now)


def refused(check, act, *arguments, **named):
    with pytest.raises(UntrustedDataError) as caught:
        act(*arguments, **named)
    assert caught.value.check == check, caught.value.message
    assert caught.value.hint
    return caught.value


def test_trust_is_kept_as_it_was_given(directory, forge):
    given = trust.establish(directory, forge.first_root, url=URL, channel="beta", pin="a" * 64)
    assert trust.load(directory) == given
    assert (given.url, given.channel, given.root.encode()) == (URL + "/", "beta", forge.first_root)
    assert FileFloorStore(directory).read() == Floors(trust=given.digest)


def test_without_trust_there_is_a_hint(directory):
    with pytest.raises(NotFoundError, match="trusts no repository"):
        trust.load(directory)


def broken(forge, **changes):
    raw = json.loads(forge.first_root)
    raw["signed"].update(changes)
    return json.dumps(raw).encode()


@pytest.mark.parametrize("raw", [b"", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b"x" * 600_000, b'{"signed": 1}'])
def test_what_is_no_root_is_refused(directory, raw):
    refused("root-form", trust.establish, directory, raw, url=URL)
    assert not list(directory.iterdir())


def test_a_root_must_be_signed_by_its_own_threshold(directory, forge):
    refused("metadata-threshold", trust.establish, directory, broken(forge, version=2), url=URL)
    raw = json.loads(forge.first_root)
    raw["signatures"] = raw["signatures"][:1]
    refused("metadata-threshold", trust.establish, directory, json.dumps(raw).encode(), url=URL)


def test_other_metadata_is_no_root(directory, forge):
    raw = (forge.public / "metadata/timestamp.json").read_bytes()
    refused("root-form", trust.establish, directory, raw, url=URL)


def test_a_repository_without_consistent_snapshots_is_refused(directory, forge):
    forge.md["root"].signed.consistent_snapshot = False
    forge.write("root")
    raw = (forge.public / "metadata/2.root.json").read_bytes()
    refused("root-form", trust.establish, directory, raw, url=URL)


@pytest.mark.parametrize("channel", ["", "../x", "UPPER", "x" * 64])
def test_a_channels_name_has_one_form(directory, forge, channel):
    with pytest.raises(UsageError, match="channel's name"):
        trust.establish(directory, forge.first_root, url=URL, channel=channel)
    assert not list(directory.iterdir())


def test_the_address_is_checked(directory, forge):
    with pytest.raises(UsageError):
        trust.establish(directory, forge.first_root, url="http://updates.example")
    assert not list(directory.iterdir())


@pytest.mark.parametrize("raw", [b"", b"{}", b"null", b'{"schema":2}', b"\xff"])
def test_a_damaged_trust_file_is_a_refusal(directory, raw):
    (directory / "trust.json").write_bytes(raw)
    refused("trust-form", trust.load, directory)


def test_giving_the_same_root_again_keeps_every_floor(directory, forge):
    trust.establish(directory, forge.first_root, url=URL)
    client(directory, forge).refresh()
    before = FileFloorStore(directory).read()
    trust.establish(directory, forge.first_root, url="https://mirror.example")
    assert FileFloorStore(directory).read() == before
    assert trust.load(directory).url == "https://mirror.example/"


def test_another_root_keeps_security_versions_and_the_clock(directory, forge, tmp_path):
    trust.establish(directory, forge.first_root, url=URL)
    client(directory, forge).refresh()
    FileFloorStore(directory).raise_to(Floors(security={"model/tiny": 3}))
    other = Forge(tmp_path / "other", NOW)
    trust.establish(directory, other.first_root, url=URL)
    found = FileFloorStore(directory).read()
    assert (found.security, found.versions, found.clock) == ({"model/tiny": 3}, {}, int(NOW))
    client(directory, other).refresh()


@pytest.mark.parametrize("missing", [("floors",), ("floors.key",), ("floors", "floors.key")])
def test_with_the_floors_gone_the_way_out_is_to_say_so(directory, forge, missing):
    trust.establish(directory, forge.first_root, url=URL)
    for name in missing:
        (directory / name).unlink()
    way_out = refused("floors-missing", client(directory, forge).refresh).hint
    assert "--forget-floors" in way_out
    refused("floors-missing", trust.establish, directory, forge.first_root, url=URL)
    trust.establish(directory, forge.first_root, url=URL, forget_floors=True)
    client(directory, forge).refresh()


@pytest.mark.parametrize("left", ["state", "state.key", "gen"])
def test_with_trust_and_floors_gone_a_device_that_took_updates_does_not_begin_anew(directory, forge, left):
    """Security floors would be gone without anybody having said so."""
    trust.establish(directory, forge.first_root, url=URL)
    for name in ("trust.json", "floors", "floors.key"):
        (directory / name).unlink()
    (directory / left).touch()
    refused("floors-missing", trust.establish, directory, forge.first_root, url=URL)
    trust.establish(directory, forge.first_root, url=URL, forget_floors=True)
    client(directory, forge).refresh()


def test_a_cut_between_floors_and_trust_is_mended_by_giving_trust_again(directory, forge):
    FileFloorStore(directory).begin(Floors(trust="9" * 64))
    trust.establish(directory, forge.first_root, url=URL)
    client(directory, forge).refresh()


def test_a_swapped_trust_file_is_noticed(directory, forge, tmp_path):
    trust.establish(directory, forge.first_root, url=URL)
    other = tmp_path / "elsewhere"
    other.mkdir()
    evil = Forge(tmp_path / "evil", NOW)
    trust.establish(other, evil.first_root, url=URL)
    (directory / "trust.json").write_bytes((other / "trust.json").read_bytes())
    refused("floors-trust", client(directory, evil).refresh)


# --- the clock


def test_a_clock_before_this_was_built_is_refused(directory, forge):
    trust.establish(directory, forge.first_root, url=URL)
    error = refused("clock", client(directory, forge, 0.0).refresh)
    assert "timedatectl" in error.hint
    assert "--accept-clock" in error.hint


def test_a_clock_that_goes_back_is_refused_and_a_person_can_say_that_it_is_right(directory, forge):
    trust.establish(directory, forge.first_root, url=URL)
    client(directory, forge, NOW + 3600).refresh()
    refused("clock", client(directory, forge, NOW).refresh)
    FileFloorStore(directory).accept_clock(int(NOW))
    client(directory, forge, NOW).refresh()


def test_a_clock_that_is_set_right_by_a_little_is_fine(directory, forge):
    trust.establish(directory, forge.first_root, url=URL)
    client(directory, forge, NOW + clients.SKEW).refresh()
    client(directory, forge, NOW).refresh()


def test_a_clock_in_the_future_is_not_remembered(directory, forge):
    """What it would have cost: a device that once woke up in 2050 refuses every repository until then."""
    trust.establish(directory, forge.first_root, url=URL)
    refused("metadata-expired", client(directory, forge, NOW + 1e9).refresh)
    client(directory, forge, NOW).refresh()


def test_a_clock_held_back_does_not_hold_expiry_back(directory, forge):
    """Within the skew the floor is the time that counts: nobody gains five minutes of an expired timestamp."""
    trust.establish(directory, forge.first_root, url=URL)
    client(directory, forge, NOW + 86_399).refresh()
    forge.now = NOW + 86_399
    store = FileFloorStore(directory)
    store.raise_to(Floors(clock=int(NOW) + 86_401))
    refused("metadata-expired", client(directory, forge, NOW + 86_399).refresh)


def test_a_signed_time_is_learnt(directory, forge):
    trust.establish(directory, forge.first_root, url=URL)
    made = client(directory, forge)
    made.learn_time(int(NOW) + 100)
    assert FileFloorStore(directory).read().clock == int(NOW) + 100
    refused("clock", made.learn_time, int(NOW) + 100_000)
    assert require_clock(NOW + 200, int(NOW) + 100) == NOW + 200


def test_the_library_lets_us_set_its_clock(directory, forge):
    """`reference_time` is python-tuf's own and not public: when it goes, nothing may judge by another clock."""
    trust.establish(directory, forge.first_root, url=URL)
    updater = client(directory, forge)._open()
    updater.set_time(0)
    assert updater._trusted_set.reference_time.timestamp() == 0
    del updater._trusted_set.reference_time
    with pytest.raises(AttributeError):
        updater.set_time(0)
