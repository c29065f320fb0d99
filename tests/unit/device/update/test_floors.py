"""Floors: they only rise, they survive, and who touches their files is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import hypothesis.strategies as st
import pytest
from hypothesis import given

from casemate.crypto.secret import Secret
from casemate.device.update import sealed_file
from casemate.device.update.floors import FileFloorStore, Floors, raised, require_not_below
from casemate.errors import OperationError, UntrustedDataError

ROLES = st.sampled_from(["root", "timestamp", "snapshot", "targets", "models", "channels"])
FLOORS = st.builds(
    Floors,
    trust=st.sampled_from(["", "a" * 64]),
    online=st.sampled_from(["", "b" * 64, "c" * 64]),
    versions=st.dictionaries(ROLES, st.integers(0, 9)),
    security=st.dictionaries(st.sampled_from(["model/tiny", "policy/strict", "app/page"]), st.integers(0, 9)),
    clock=st.integers(0, 1 << 33),
)


@pytest.fixture
def store(tmp_path):
    made = FileFloorStore(tmp_path)
    made.begin(Floors(trust="a" * 64))
    return made


@given(FLOORS, FLOORS)
def test_nothing_ever_falls_but_what_replaced_keys_had_vouched_for(old, wanted):
    new = raised(old, wanted)
    assert all(new.security[key] >= value for key, value in old.security.items())
    assert new.clock == max(old.clock, wanted.clock)
    assert new.versions.get("root", 0) >= old.versions.get("root", 0)
    replaced = old.online and wanted.online and wanted.online != old.online
    newer_root = wanted.versions.get("root", 0) > old.versions.get("root", 0)
    if not (replaced and newer_root):
        assert all(new.versions[key] >= value for key, value in old.versions.items())


@given(FLOORS, FLOORS)
def test_what_was_raised_to_is_not_below_and_raising_again_changes_nothing(old, wanted):
    new = raised(old, wanted)
    assert raised(new, wanted) == new
    require_not_below(new, new)


@given(FLOORS, ROLES)
def test_one_role_below_is_refused(old, role):
    if not old.versions.get(role):
        return
    found = {**old.versions, role: old.versions[role] - 1}
    with pytest.raises(UntrustedDataError) as caught:
        require_not_below(old, Floors(trust=old.trust, online=old.online, versions=found))
    assert caught.value.check == "metadata-replay"
    del found[role]
    with pytest.raises(UntrustedDataError):
        require_not_below(old, Floors(trust=old.trust, online=old.online, versions=found))


def test_new_online_keys_without_a_newer_root_recover_nothing():
    old = Floors(online="b" * 64, versions={"root": 2, "timestamp": 9})
    with pytest.raises(UntrustedDataError):
        require_not_below(old, Floors(online="c" * 64, versions={"root": 2, "timestamp": 1}))
    require_not_below(old, Floors(online="c" * 64, versions={"root": 3, "timestamp": 1}))


def test_floors_of_another_trust_are_not_mixed():
    with pytest.raises(UntrustedDataError) as caught:
        raised(Floors(trust="a" * 64), Floors(trust="b" * 64))
    assert caught.value.check == "floors-trust"


@given(FLOORS)
def test_the_file_gives_back_what_was_written(tmp_path_factory, floors):
    made = FileFloorStore(tmp_path_factory.mktemp("floors"))
    made.begin(floors)
    assert made.read() == floors
    assert made.kind == "software only"


def test_files_are_the_owners_alone(store):
    assert store.path.stat().st_mode & 0o777 == store.key_path.stat().st_mode & 0o777 == 0o600


def test_every_flipped_bit_is_noticed(store):
    raw = store.path.read_bytes()
    for at in range(len(raw)):
        store.path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(UntrustedDataError) as caught:
            store.read()
        assert caught.value.check in {"floors-mac", "floors-form"}
        assert "--forget-floors" in caught.value.hint
    store.path.write_bytes(raw)
    store.read()


@pytest.mark.parametrize("name", ["floors", "floors.key"])
@pytest.mark.parametrize("how", ["gone", "empty", "long"])
def test_missing_or_damaged_is_a_refusal_with_a_way_out(store, tmp_path, name, how):
    path = tmp_path / name
    raw = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(b"" if how == "empty" else raw + b"x" * 600_000)
    for act in (store.read, lambda: store.raise_to(Floors(clock=1)), lambda: store.accept_clock(1)):
        with pytest.raises(UntrustedDataError) as caught:
            act()
        assert caught.value.check in {"floors-missing", "floors-mac", "floors-form"}
        assert caught.value.hint


def test_another_files_seal_does_not_stand_for_the_floors(store, tmp_path):
    with Secret(store.key_path.read_bytes()) as key:
        store.path.write_bytes(sealed_file.seal(key, "state", json.dumps({"clock": 0}).encode()))
    with pytest.raises(UntrustedDataError) as caught:
        store.read()
    assert caught.value.check == "floors-mac"


def test_beginning_again_keeps_the_key_and_a_damaged_one_is_replaced(store):
    key = store.key_path.read_bytes()
    store.begin(Floors(clock=5))
    assert (store.key_path.read_bytes(), store.read().clock) == (key, 5)
    store.key_path.write_bytes(b"short")
    store.begin(Floors(clock=6))
    assert store.read().clock == 6


def test_only_a_person_takes_the_clock_back(store):
    store.raise_to(Floors(clock=2_000_000_000))
    assert store.raise_to(Floors(clock=5)).clock == 2_000_000_000
    store.accept_clock(1_900_000_000)
    assert store.read().clock == 1_900_000_000


def test_two_who_raise_at_once_both_count(store):
    def work(name):
        for number in range(1, 21):
            store.raise_to(Floors(security={f"model/{name}": number}))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read().security == {"model/one": 20, "model/three": 20, "model/two": 20}


def test_a_full_disk_leaves_the_old_floors(store, monkeypatch):
    store.raise_to(Floors(clock=7))
    before = store.read()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OperationError, match="No space left"):
        store.raise_to(Floors(clock=9))
    monkeypatch.undo()
    assert store.read() == before
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["floors", "floors.key"]


def test_a_kill_leaves_the_old_floors_or_the_new(tmp_path):
    """Killed at random while it raises: what is read afterwards was written by somebody, whole, and never fell."""
    store = FileFloorStore(tmp_path)
    store.begin(Floors())
    code = (
        "import sys,itertools,pathlib\n"
        "from casemate.device.update.floors import FileFloorStore, Floors\n"
        "store = FileFloorStore(pathlib.Path(sys.argv[1]))\n"
        "for number in itertools.count(store.read().clock + 1):\n"
        "    store.raise_to(Floors(clock=number)); print(number, flush=True)\n"
    )
    last = 0
    for lines in (1, 7, 40):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        told = [int(child.stdout.readline()) for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        told += [int(line) for line in child.communicate()[0].splitlines()]
        found = store.read().clock
        assert last < told[-1] <= found <= told[-1] + 1
        last = found
