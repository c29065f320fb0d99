"""A fetch that is killed, cut off or runs out of disk, in processes and on disks of their own."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from casemate.device.update import client
from casemate.device.update.floors import FileFloorStore
from casemate.errors import OperationError
from casemate.formats import manifest
from casemate.formats.payload import SEALED_CHUNK_BYTES
from support import mirror, published, releases
from support.forge import Directory, Forge

FETCHING = Path(__file__).parents[1] / "support" / "fetching.py"
PLAIN = np.random.default_rng(7).bytes(6_200_000)
MADE = releases.release(PLAIN)
FULL = MADE.manifest.full


@pytest.fixture
def site(tmp_path):
    for digest, data in MADE.chunks.items():
        path = tmp_path / "public" / manifest.chunk_path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "manifest.json").write_bytes(manifest.encode(MADE.manifest))
    with mirror.serving(tmp_path / "public", rate=12_000_000) as running:
        yield running


def start(site, tmp_path, directory=None):
    where = directory or tmp_path / "fetch" / MADE.manifest.release
    command = [sys.executable, str(FETCHING), site.url, str(tmp_path / "manifest.json"), str(where)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **streams)


def test_a_kill_costs_at_most_one_chunk(site, tmp_path):
    """Killed again and again at random moments, mid-chunk as well as between: what the server sent is the measure."""
    draw = random.Random(11)
    kills = 0
    for _ in range(7):
        before = site.bytes_of_chunks
        child = start(site, tmp_path)
        child.stdout.readline()
        while site.bytes_of_chunks < before + draw.randint(1, 2 * SEALED_CHUNK_BYTES) and child.poll() is None:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.communicate()
        if child.returncode == 0:
            break
    done = start(site, tmp_path)
    out, _ = done.communicate(timeout=60)
    assert done.returncode == 0
    assert Path(out.split()[-1]).read_bytes() == MADE.stream(FULL.id)
    assert kills >= 3
    assert site.bytes_of_chunks - FULL.transfer_bytes <= kills * SEALED_CHUNK_BYTES


def test_a_server_that_goes_away_in_the_middle_costs_at_most_one_chunk(site, tmp_path):
    gone = threading.Event()

    def vanish(handler, _path):
        if gone.is_set():
            mirror.cut(handler)
        return gone.is_set()

    site.answer("chunks/.*", vanish)
    child = start(site, tmp_path)
    while site.bytes_of_chunks < 2.5 * SEALED_CHUNK_BYTES:
        time.sleep(0.002)
    gone.set()
    _, text = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "cannot fetch" in text
    gone.clear()
    again = start(site, tmp_path)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert site.bytes_of_chunks - FULL.transfer_bytes <= SEALED_CHUNK_BYTES


@pytest.fixture
def disk(tmp_path):
    """A disk whose size a test sets: disk(bytes)."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def size(count):
        options = f"size={count}" + (",remount" if mounted else "")
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True, capture_output=True)
        mounted.append(place)
        return place

    yield size
    if mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
@pytest.mark.parametrize("chunks", [0, 1, 3, 5.9, 8])
def test_a_disk_too_small_for_a_payload_says_so_before_the_first_byte(site, tmp_path, disk, chunks):
    place = disk(int(chunks * SEALED_CHUNK_BYTES) + (64 << 10))
    child = start(site, tmp_path, place / "fetch" / "r")
    _, text = child.communicate(timeout=60)
    assert (child.returncode, site.asked) == (1, [])
    assert "free" in text
    assert not list(place.rglob("*.sealed"))
    disk(64 << 20)
    child = start(site, tmp_path, place / "fetch" / "r")
    child.communicate(timeout=60)
    assert child.returncode == 0


@pytest.mark.root
def test_a_disk_that_others_fill_meanwhile_does_not_stop_a_fetch_nor_break_it(site, tmp_path, disk):
    """The payload's space was taken before its first byte."""
    place = disk(24 << 20)
    child = start(site, tmp_path, place / "fetch" / "r")
    while not site.bytes_of_chunks:
        time.sleep(0.002)
    _leave(place, place / "others", 0)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert Path(out.split()[-1]).read_bytes() == MADE.stream(FULL.id)


@pytest.mark.root
def test_a_disk_that_fills_up_at_any_point_of_a_check_loses_nothing(tmp_path, disk):
    """From no room at all up to enough, 4 KiB at a time: refused or done; with room it is done; nothing went back."""
    forge = Forge(tmp_path / "public", time.time())
    forge.delegate("models", ["model/*/*/manifest.json"])
    forge.put("models", "model/demo/1/manifest.json", b"x" * 5000)
    forge.publish("targets", "models")
    place = disk(1 << 20)
    update = place / "update"
    published.follow(update, _Metadata(forge), "https://updates.example")
    before = FileFloorStore(update).read()
    outcomes = set()
    filler = place / "filler"
    for spare in range(16):
        _leave(place, filler, spare * 4096)
        made = published.client(update, Directory(forge.public))
        try:
            made.refresh()
            made.read("model/demo/1/manifest.json", 100_000)
            outcomes.add("done")
        except OperationError as error:
            outcomes.add("refused")
            assert "space" in error.message + error.hint.lower() or "free" in error.hint
        after = FileFloorStore(update).read()
        assert all(after.versions[role] >= version for role, version in before.versions.items())
        before = after
        filler.unlink()
        again = published.client(update, Directory(forge.public))
        again.refresh()
        forge.publish("targets", "models")
        if spare % 3 == 0:
            client.clear_cache(update)
    assert outcomes == {"done", "refused"}


class _Metadata:
    def __init__(self, forge):
        self.metadata = forge.public / "metadata"


def _leave(place, filler, spare):
    """Fill the disk until *spare* bytes are left."""
    room = os.statvfs(place)
    with filler.open("wb") as file:
        file.write(bytes(max(0, room.f_bavail * room.f_frsize - spare)))
