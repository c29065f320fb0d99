"""The durable store of generations: what runs, what never comes back, and what a damaged state turns into."""

from __future__ import annotations

import os
import shutil
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from casemate.device.update.floors import Floors
from casemate.device.update.states import PENDING, Phase
from casemate.errors import (
    BusyError,
    NotFoundError,
    OperationError,
    PolicyDeniedError,
    UntrustedDataError,
    UsageError,
)
from support import generations
from support.generations import SOAK, Device, content


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path).create()


def test_a_new_device_runs_what_it_was_given_by_hand(device):
    booted = device.store.boot()
    assert booted.generation is None
    status = device.store.status().as_json()
    assert (status["state"], status["good"], status["trial"]) == ("IDLE", None, None)
    assert (status["tries"], status["floor"], status["floor_kind"]) == (0, {}, "software only")
    assert (status["denied"], status["last_error"]) == ([], "")


def test_an_update_goes_on_trial_then_good_then_raises_the_floor(device):
    device.stage(1, security=4)
    device.store.arm()
    booted = device.store.boot()
    assert booted.trial
    assert booted.tries == 2
    assert booted.generation.item("model").container == "saffron.g1"
    device.store.mark_good(1)
    assert device.store.status().good == 1
    assert not device.store.soaked(device.clock.now + SOAK - 1)
    assert device.floors.read().security == {}
    assert device.store.soaked(device.clock.now + SOAK)
    assert device.floors.read().security == {"app/saffron": 4, "model/saffron": 4}
    assert device.store.status().state == "FLOOR_RAISED"


def test_a_try_is_taken_before_the_trial_starts_and_three_are_all(device):
    device.update(1)
    device.stage(2)
    device.store.arm()
    for left in (2, 1, 0):
        assert device.store.boot().tries == left
        assert Device(device.path.parent).store.state().tries == left
    booted = device.store.boot()
    assert not booted.trial
    assert booted.generation.set_generation == 1
    assert "tries are used up" in booted.note
    assert device.store.status().denied == (content(2),)


def test_what_was_rolled_back_never_comes_again(device):
    device.update(1)
    device.stage(2)
    device.store.arm()
    device.store.boot()
    device.store.fail("a smoke prompt was not answered")
    assert device.store.status().last_error == "a smoke prompt was not answered"
    with pytest.raises(PolicyDeniedError, match="rolled back"):
        device.store.checked(content(2), ["saffron"])
    assert device.update(3) == 3


def test_a_device_without_an_earlier_generation_goes_back_to_what_it_had_by_hand(device):
    device.stage(1)
    device.store.arm()
    device.store.boot()
    device.store.fail("it does not answer")
    assert device.store.boot().generation is None


def test_a_person_goes_back_until_the_soak_is_over(device):
    device.update(1)
    device.update(2)
    device.store.rollback()
    assert device.runs() == 1
    assert device.store.status().denied == (content(2),)
    device.update(3)
    device.store.confirm()
    with pytest.raises(NotFoundError, match="no earlier generation"):
        device.store.rollback()
    assert device.runs() == 3


def test_rolling_back_on_trial_keeps_the_good_one(device):
    device.update(1)
    device.stage(2)
    device.store.arm()
    device.store.rollback("not today")
    assert device.runs() == 1
    assert device.store.status().denied == (content(2),)


def test_going_back_below_a_floor_is_refused(device):
    device.update(1, security=1)
    device.update(2, security=2)
    device.floors.raise_to(Floors(security={"model/saffron": 2}))
    with pytest.raises(PolicyDeniedError, match="security version 1"):
        device.store.rollback()
    assert device.runs() == 2


def test_nothing_below_a_floor_is_staged(device):
    device.floors.raise_to(Floors(security={"app/saffron": 3}))
    with pytest.raises(PolicyDeniedError, match="app/saffron has security version 2"):
        device.stage(1, security=2)
    assert not device.on_disk()


def test_a_trial_below_a_floor_that_rose_meanwhile_does_not_start(device):
    device.update(1, security=5)
    device.stage(2, security=3)
    device.store.arm()
    device.store.confirm()
    booted = device.store.boot()
    assert booted.generation.set_generation == 1
    assert "security version 3" in booted.note


def test_only_the_trial_becomes_good(device):
    device.stage(1)
    with pytest.raises(UsageError):
        device.store.mark_good(1)
    device.store.arm()
    with pytest.raises(UsageError):
        device.store.mark_good(1)
    device.store.boot()
    with pytest.raises(UsageError):
        device.store.mark_good(2)


def test_the_same_content_checked_again_keeps_its_number_and_its_place(device):
    first = device.store.checked(content(1), ["saffron"])
    device.store.fetching()
    device.store.interrupted("the network went away")
    again = device.store.checked(content(1), ["saffron"])
    assert (again.pending, again.phase) == (first.pending, Phase.FETCHING)
    assert device.store.status().last_error == "the network went away"


def test_a_newer_set_takes_the_place_of_one_that_is_not_armed(device):
    device.stage(1)
    state = device.store.checked(content(2), ["saffron"])
    assert state.pending == 2
    garbage = device.store.gc()
    assert garbage.generations == (1,)
    assert garbage.containers == ("saffron.g1",)


def test_numbers_pass_by_containers_that_are_already_there(device):
    (device.models / "saffron.g1").touch()  # somebody's own
    state = device.store.checked(content(1), ["saffron"])
    assert state.pending == 2
    device.store.withdrawn("not offered any more")
    assert "saffron.g1" not in device.store.gc().containers


def test_a_container_is_removed_only_after_nothing_needs_it(device):
    device.update(1)
    device.update(2)
    assert sorted(device.containers()) == ["saffron.g1", "saffron.g2"]
    with pytest.raises(BusyError):
        device.store.forget(["saffron.g1"])
    device.store.confirm()
    device.collect()
    assert device.containers() == ["saffron.g2"]
    assert not device.store.state().unneeded


def test_a_container_that_a_newer_generation_shares_stays(device):
    device.update(1)
    device.store.checked(content(2))  # its model did not change: nothing is claimed
    device.store.fetching()
    record, files = generations.generation(2, 2, container="saffron.g1")
    device.store.stage(record, files)
    device.store.arm()
    device.store.boot()
    device.store.mark_good(2)
    device.store.confirm()
    assert device.store.gc().containers == ()
    with pytest.raises(BusyError):
        device.store.forget(["saffron.g1"])
    device.update(3)
    device.store.confirm()
    assert device.store.gc().containers == ("saffron.g1",)


def test_gc_keeps_good_trial_and_the_one_before(device):
    for version in (1, 2, 3):
        device.update(version)
    device.stage(4)
    device.store.arm()
    (device.path / "gen" / ".9.part").mkdir()
    assert device.store.gc().generations == ()
    assert device.on_disk() == ["2", "3", "4"]


# --- staging --------------------------------------------------------------------------------------------------------


def pending(device: Device, version: int = 1):
    state = device.store.checked(content(version), ["saffron"])
    device.store.fetching()
    (device.models / f"saffron.g{state.pending}").touch()
    return generations.generation(state.pending, version)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda files: files.pop("app/index.html"), "generation-files"),
        (lambda files: files.update({"app/extra": (b"",)}), "generation-files"),
        (lambda files: files.update({"app/index.html": (b"<p>version 9</p>",)}), "generation-file"),
        (lambda files: files.update({"app/index.html": (b"x" * 10_000,)}), "generation-file"),
        (lambda files: files.update({"app/index.html": (b"",)}), "generation-file"),
    ],
)
def test_files_that_are_not_the_records_are_refused_and_leave_nothing(device, change, check):
    record, files = pending(device)
    change(files)
    with pytest.raises(UntrustedDataError) as refused:
        device.store.stage(record, files)
    assert refused.value.check == check
    assert not device.on_disk()
    assert device.store.state().phase is Phase.FETCHING


def test_a_set_that_was_not_checked_is_not_staged(device):
    pending(device)
    record, files = generations.generation(1, 7)
    with pytest.raises(UntrustedDataError, match="not the set that was checked"):
        device.store.stage(record, files)


def test_two_processes_do_not_stage_at_once(device):
    record, files = pending(device)
    inside, go = threading.Event(), threading.Event()

    def slow():
        inside.set()
        go.wait(20)
        yield b"<p>version 1</p>"

    other = threading.Thread(target=device.store.stage, args=(record, files | {"app/index.html": slow()}))
    other.start()
    assert inside.wait(20)
    with pytest.raises(BusyError):
        Device(device.path.parent).store.stage(record, files)
    with pytest.raises(BusyError):
        device.store.gc()
    assert device.store.status().state == "FETCHING"  # readers never wait
    go.set()
    other.join(20)
    assert device.store.status().state == "STAGED"


def test_a_model_whose_container_is_gone_is_not_armed(device):
    device.stage(1)
    (device.models / "saffron.g1").unlink()
    with pytest.raises(NotFoundError, match=r"saffron\.g1"):
        device.store.arm()


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(path, at=-5):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def swap_state(device):
    (device.path / "state").write_bytes((device.path / "gen" / "2" / "generation.json").read_bytes())


DAMAGE = {
    "flipped": lambda device: flip(device.path / "state"),
    "flipped seal": lambda device: flip(device.path / "state", 100),
    "emptied": lambda device: (device.path / "state").write_bytes(b""),
    "cut": lambda device: (device.path / "state").write_bytes((device.path / "state").read_bytes()[:50]),
    "gone": lambda device: (device.path / "state").unlink(),
    "a link": lambda device: ((device.path / "state").unlink(), (device.path / "state").symlink_to("/dev/null")),
    "a sealed record": swap_state,
    "huge": lambda device: (device.path / "state").write_bytes(b"x" * (2 << 20)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_state_that_is_not_good_is_never_taken_for_an_empty_one(device, damage):
    device.update(1)
    device.update(2)
    DAMAGE[damage](device)
    booted = device.store.boot()
    assert booted.generation.set_generation == 2
    assert booted.trial, "nobody can say any more whether it was good, and there is one to go back to"
    device.store.fail("it does not answer")
    assert device.runs() == 1
    assert device.update(3) == 3


def test_a_damaged_state_recovers_to_the_only_generation_there_is(device):
    device.update(1)
    flip(device.path / "state")
    assert device.runs() == 1
    status = device.store.status()
    assert (status.state, status.good) == ("GOOD", 1)
    assert "recovered" in status.last_error


def test_recovery_never_goes_below_a_floor(device):
    device.update(1, security=1)
    device.update(2, security=2)
    device.floors.raise_to(Floors(security={"model/saffron": 2}))
    flip(device.path / "state")
    booted = device.store.boot()
    assert booted.generation.set_generation == 2
    assert not booted.trial
    device.floors.raise_to(Floors(security={"model/saffron": 3}))
    with pytest.raises(UntrustedDataError, match="no generation can run"):
        device.store.boot()


def test_a_damaged_state_without_any_generation_is_an_error_with_a_way_out(device):
    device.store.checked(content(1))
    flip(device.path / "state")
    with pytest.raises(UntrustedDataError) as refused:
        device.store.boot()
    assert refused.value.check == "update-state"
    assert "remove `gen` and `state`" in refused.value.hint
    (device.path / "state").unlink()
    assert device.update(1)


def test_a_state_of_another_device_is_refused(device, tmp_path):
    other = Device(tmp_path / "other").create()
    other.update(1)
    device.update(2)
    shutil.copy(other.path / "state", device.path / "state")
    assert device.runs() == 2


def test_a_record_moved_to_another_number_is_refused(device):
    device.update(1)
    device.update(2)
    shutil.rmtree(device.path / "gen" / "2")
    shutil.copytree(device.path / "gen" / "1", device.path / "gen" / "2")
    assert device.runs() == 1


@pytest.mark.parametrize("spoil", [
    lambda tree: (tree / "app" / "index.html").write_bytes(b"<p>version 6</p>"),
    lambda tree: (tree / "app" / "js" / "more.js").write_bytes(b""),
    lambda tree: (tree / "app" / "index.html").unlink(),
    lambda tree: ((tree / "app" / "index.html").unlink(), (tree / "app" / "index.html").symlink_to("/etc/hostname")),
    lambda tree: (tree / "app" / "link").symlink_to("js"),
    lambda tree: flip(tree / "generation.json"),
])  # fmt: skip
def test_a_trial_whose_files_were_changed_does_not_start(device, spoil):
    device.update(1)
    device.stage(2)
    device.store.arm()
    spoil(device.path / "gen" / "2")
    assert device.runs() == 1
    assert device.store.status().state == "ROLLED_BACK"


def test_a_good_one_that_was_changed_gives_way_to_the_one_before(device):
    device.update(1)
    device.update(2)
    flip(device.path / "gen" / "2" / "app" / "index.html")
    assert device.runs() == 1


def test_without_the_key_nothing_runs(device):
    device.update(1)
    (device.path / "state.key").unlink()
    with pytest.raises(UntrustedDataError):
        device.store.boot()


def test_without_floors_nothing_runs_and_no_trial_is_blamed(device):
    device.update(1)
    device.stage(2)
    device.store.arm()
    before = (device.path / "state").read_bytes()
    (device.path / "floors").unlink()
    with pytest.raises(UntrustedDataError) as refused:
        device.store.boot()
    assert refused.value.check == "floors-missing"
    assert (device.path / "state").read_bytes() == before


def test_a_soak_that_ends_raises_floors_before_it_says_so(device, monkeypatch):
    device.update(1, security=3)

    def full(_floors):
        raise OperationError("disk full")

    monkeypatch.setattr(device.floors, "raise_to", full)
    with pytest.raises(OperationError):
        device.store.soaked(device.clock.now + SOAK)
    assert device.store.status().state == "GOOD"


def test_what_killed_writers_left_is_removed(device):
    device.update(1)
    leftover = device.path / ".state.0123abcd.tmp"
    leftover.write_bytes(b"half")
    device.store.boot()
    device.store.confirm()
    assert not leftover.exists()


@pytest.mark.root
def test_what_root_writes_belongs_to_the_directorys_owner(tmp_path):
    device = Device(tmp_path).create()
    for path in (device.path, device.models):
        os.chown(path, 61950, 61951)
    device.update(1)
    for folder, folders, names in os.walk(device.path):
        for name in [*folders, *names]:
            if name not in ("floors", "floors.key"):
                facts = os.lstat(os.path.join(folder, name))
                assert (facts.st_uid, facts.st_gid) == (61950, 61951), name


# --- whatever happens -----------------------------------------------------------------------------------------------


class Updates(RuleBasedStateMachine):
    """Any order of events and damage: a device always has what to run, and promises stay kept."""

    def __init__(self) -> None:
        super().__init__()
        self.root = generations.scratch()
        self.device = Device(self.root).create()
        self.version = 0
        self.denied: set[str] = set()
        self.security = 1

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def tried(self, act, *arguments) -> bool:
        try:
            act(*arguments)
        except (UsageError, BusyError, NotFoundError, PolicyDeniedError):
            return False
        return True

    @rule(rise=st.integers(-1, 1))
    def stage_a_newer_one(self, rise):
        self.version += 1
        self.security = max(1, self.security + rise)
        self.tried(lambda: self.device.stage(self.version, security=self.security))

    @rule()
    def fetch_and_stop(self):
        self.version += 1
        self.tried(
            lambda: (self.device.store.checked(content(self.version), ["saffron"]), self.device.store.fetching())
        )

    @rule()
    def withdraw(self):
        self.tried(self.device.store.withdrawn, "withdrawn")

    @rule()
    def arm(self):
        self.tried(self.device.store.arm)

    @rule()
    def boot(self):
        self.device.store.boot()

    @rule()
    def pass_the_gate(self):
        self.tried(self.device.store.mark_good, self.device.store.state().trial)

    @rule()
    def fail_the_gate(self):
        self.tried(self.device.store.fail, "bad")

    @rule()
    def roll_back(self):
        self.tried(self.device.store.rollback)

    @rule(seconds=st.integers(0, 2 * SOAK))
    def wait(self, seconds):
        self.device.clock.now += seconds
        self.device.store.soaked(self.device.clock.now)

    @rule()
    def collect(self):
        self.device.collect()

    @precondition(lambda self: self.device.store.state().good)
    @rule()
    def lose_the_state(self):
        before = set(self.device.store.state().denied)
        flip(self.device.path / "state")
        self.denied -= before  # the list is lost with it, the floors are not

    @invariant()
    def promises_hold(self):
        state = self.device.store.state()
        assert self.denied <= set(state.denied)
        self.denied = set(state.denied)
        assert (state.phase in PENDING) == bool(state.pending or state.trial)
        floors = self.device.floors.read().security
        if state.good:
            good = self.device.store.verify(state.good)  # whole, and at or above every floor
            assert good.content_digest not in state.denied
            assert all(good.versions[name] >= floor for name, floor in floors.items())


TestUpdates = Updates.TestCase
TestUpdates.settings = settings(max_examples=40, stateful_step_count=25)
