"""A thief puts an older generation back: its directory, its container and the state that named it, all genuine.

Every file is one that this very device sealed, so no MAC finds it. What does is the floor, which lies elsewhere and
rose when the newer generation had soaked. The controls: before the soak ends the same files are simply the way back,
and a store that does not ask for floors runs them.
"""

from __future__ import annotations

import shutil

import pytest

from casemate.config import Settings
from casemate.device import generation
from casemate.device.home import Home
from casemate.device.update import shelf, traces
from casemate.errors import CasemateError, PolicyDeniedError, UntrustedDataError
from support.generations import Device

VULNERABLE, FIXED = 1, 2


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path / "device").create()


def keep_a_copy(device, tmp_path):
    for name in ("update/gen/1", "update/state", "models/saffron.g1"):
        source, target = device.path.parent / name, tmp_path / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def put_back(device, tmp_path):
    shutil.copytree(tmp_path / "copy", device.path.parent, dirs_exist_ok=True)


@pytest.fixture
def updated(device, tmp_path):
    """It ran the vulnerable one, which the thief copied, and runs the fixed one for good."""
    device.update(VULNERABLE, security=1)
    keep_a_copy(device, tmp_path)
    device.update(FIXED, security=2)
    device.store.confirm()
    device.collect()
    return device


def test_control_without_floors_the_old_one_runs(updated, tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "require_above_floors", lambda *_: None)
    put_back(updated, tmp_path)
    assert updated.runs() == VULNERABLE


def test_control_before_the_soak_is_over_it_is_the_way_back(device, tmp_path):
    device.update(VULNERABLE, security=1)
    keep_a_copy(device, tmp_path)
    device.update(FIXED, security=2)
    put_back(device, tmp_path)
    assert device.runs() == VULNERABLE


def test_the_old_one_does_not_run_again(updated, tmp_path):
    put_back(updated, tmp_path)
    assert updated.runs() == FIXED


def test_not_even_when_the_new_one_is_gone(updated, tmp_path):
    shutil.rmtree(updated.path / "gen" / "2")
    put_back(updated, tmp_path)
    with pytest.raises(UntrustedDataError, match="no generation can run"):
        updated.runs()


def test_deleting_every_generation_does_not_bring_back_what_was_there_before_updates(updated):
    """Without a generation a device serves what it was given by hand: the control is a device that never had one."""
    assert Device(updated.path.parent.parent / "new").create().runs() == 0
    shutil.rmtree(updated.path / "gen")
    (updated.path / "state").unlink()
    with pytest.raises(UntrustedDataError, match="no generation is left"):
        updated.runs()
    assert updated.update(3, security=2)
    assert updated.runs() == 3


def start(updated, left):
    """Start the device when of all that updates wrote only *left* is there."""
    (updated.path / "trust.json").write_bytes(b"{}")
    for name in {*traces.NAMES, "floors.key"} - left:
        path = updated.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return generation.boot(Home(updated.path.parent), Settings({"update.soak": 1, "keystore.tpm": ""}, {}))


def test_control_with_everything_gone_it_starts_as_a_device_that_never_took_updates(updated):
    assert start(updated, set()) is generation.NOTHING


@pytest.mark.parametrize("left", traces.NAMES)
def test_a_part_that_is_left_does_not_start_as_a_device_that_never_took_updates(updated, left):
    with pytest.raises(UntrustedDataError) as refused:
        start(updated, {left})
    assert refused.value.check == "floors-missing"


def test_every_file_that_updates_rest_on_is_a_trace(updated):
    passing = {"floors.key", "gen.lock", "state.lock"}
    assert {path.name for path in updated.path.iterdir()} - passing == set(traces.NAMES) - {"trust.json"}


def test_nor_by_rolling_back_to_it(updated, tmp_path):
    put_back(updated, tmp_path)
    with pytest.raises(CasemateError):
        updated.store.rollback()
    assert updated.runs() == FIXED


def test_nor_as_an_update(updated):
    with pytest.raises(PolicyDeniedError, match="security version 1"):
        updated.update(3, security=1)


def test_nor_without_the_floors(updated, tmp_path):
    (updated.path / "floors").unlink()
    put_back(updated, tmp_path)
    with pytest.raises(UntrustedDataError) as refused:
        updated.runs()
    assert refused.value.check == "floors-missing"
