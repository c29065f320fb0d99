"""OS releases through a real RAUC: its service on a bus of our own, slots and boot loader made of files."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from casemate.device.update.floors import FileFloorStore, Floors
from casemate.device.update.generation import Item
from casemate.device.update.os_updater import OsUpdater
from casemate.device.update.rauc import RaucUpdater
from casemate.errors import HostError, NotFoundError, OperationError, PolicyDeniedError, UntrustedDataError
from casemate.formats.manifest import File
from support import generations, rauc

IMAGE = os.urandom(49 * 4096)

pytestmark = pytest.mark.root  # RAUC's service works as root


@pytest.fixture
def host(tmp_path):
    host = rauc.Host(tmp_path / "host").create()
    with host.running():
        yield host


@pytest.fixture
def floors(tmp_path):
    directory = tmp_path / "update"
    directory.mkdir()
    store = FileFloorStore(directory)
    store.begin(Floors())
    return store


@pytest.fixture
def updater(host, floors) -> OsUpdater:
    return RaucUpdater(floors, command=host.command, environ=host.environ)


def release(bundle: Path, *, version: str = "2.0", security: int = 1) -> Item:
    data = bundle.read_bytes()
    file = File(bundle.name, len(data), hashlib.sha256(data).hexdigest())
    name = generations.digest(version)
    return Item("os", "board", version, security, name[:32], name, (file,))


def slot(host, name: str) -> bytes:
    return (host.path / f"slot-{name}").read_bytes()


def test_a_bundle_is_installed_then_activated_then_good(host, updater):
    before = updater.status()
    assert (before.compatible, before.booted, before.primary) == (rauc.COMPATIBLE, "rootfs.0", "rootfs.0")
    bundle = host.bundle(IMAGE)
    updater.install(bundle, release(bundle))
    assert slot(host, "b")[: len(IMAGE)] == IMAGE
    assert not any(slot(host, "a"))
    assert host.primary == "A", "what starts next is not changed by installing"
    updater.activate()
    assert host.primary == "B"
    assert updater.status().primary == "rootfs.1"
    updater.mark_good()
    assert host.state("A") == "good"
    updater.mark_bad()
    assert host.state("A") == "bad"
    assert [item.good for item in updater.status().slots] == [False, True]


def test_a_release_below_the_floor_never_reaches_rauc(host, floors):
    floors.raise_to(Floors(security={"os/board": 3}))
    bundle = host.bundle(IMAGE)
    refused = RaucUpdater(floors, command=("/does/not/exist",))
    with pytest.raises(PolicyDeniedError, match="security version 2"):
        refused.install(bundle, release(bundle, security=2))
    assert not any(slot(host, "b"))


def test_rauc_alone_would_install_an_older_one(host, updater, floors):
    """The control: nothing but our floor keeps an old, well-signed bundle out."""
    bundle = host.bundle(IMAGE, version="0.1")
    updater.install(bundle, release(bundle, version="0.1", security=0))
    assert slot(host, "b")[: len(IMAGE)] == IMAGE


def test_a_bundle_that_is_not_the_releases_file_is_refused(host, updater):
    bundle = host.bundle(IMAGE)
    item = release(bundle)
    raw = bytearray(bundle.read_bytes())
    raw[5000] ^= 1
    bundle.write_bytes(raw)
    with pytest.raises(UntrustedDataError, match="not the file that the release names"):
        updater.install(bundle, item)
    with pytest.raises(UntrustedDataError) as refused:  # a release machine that was taken over signs it all the same
        updater.install(bundle, release(bundle))
    assert refused.value.check == "os-bundle"
    assert not any(slot(host, "b"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"signer": "other-"}, "RAUC refused the bundle"),
        ({"compatible": "another-board"}, "is for 'another-board'"),
        ({"version": "9.0"}, "says it is version 9.0"),
    ],
)
def test_a_bundle_of_somebody_else_is_refused(host, updater, options, says):
    bundle = host.bundle(IMAGE, **options)
    with pytest.raises(UntrustedDataError, match=says):
        updater.install(bundle, release(bundle))
    assert not any(slot(host, "b"))


def test_a_slot_that_cannot_be_written_is_an_error_and_the_running_slot_stays(host, updater):
    bundle = host.bundle(IMAGE)
    (host.path / "slot-b").unlink()
    with pytest.raises(OperationError, match="RAUC did not install the bundle"):
        updater.install(bundle, release(bundle))
    assert not any(slot(host, "a"))
    assert host.primary == "A"


def test_a_bundle_that_is_gone_is_said(host, updater):
    bundle = host.bundle(IMAGE)
    item = release(bundle)
    bundle.unlink()
    with pytest.raises(NotFoundError):
        updater.install(bundle, item)


def test_a_host_without_rauc_says_what_it_lacks(floors):
    with pytest.raises(HostError, match="no RAUC"):
        RaucUpdater(floors, command=("/does/not/exist",)).status()


def test_a_service_that_does_not_run_is_said(tmp_path, floors):
    host = rauc.Host(tmp_path / "host").create()
    with pytest.raises(HostError, match="service does not run"):
        RaucUpdater(floors, command=host.command, environ=host.environ).status()


def test_a_rauc_that_hangs_is_ended_with_all_it_started(tmp_path, floors):
    script = tmp_path / "rauc"
    script.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {tmp_path}/child\nwait\n")
    script.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(OperationError, match="did not answer within 1 s"):
        RaucUpdater(floors, command=(str(script),), answer_seconds=1).status()
    assert time.monotonic() - began < 5
    while runs(int((tmp_path / "child").read_text())):
        assert time.monotonic() - began < 20
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process is there and is not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_answer_that_makes_no_sense_is_an_error(tmp_path, floors):
    script = tmp_path / "rauc"
    script.write_text("#!/bin/sh\necho '{\"compatible\": 1}'\n")
    script.chmod(0o755)
    with pytest.raises(OperationError, match="not understood"):
        RaucUpdater(floors, command=(str(script),)).status()
