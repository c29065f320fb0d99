"""Updates on a disk that is full, as a program: `KIND`, run as root in a mount namespace of its own.

On a tmpfs a device updates until one step, and the disk fills up: room for 0, 1, 2 ... more pages (or files) is left,
until the step works. When it does not it must say so, stay readable, boot, and work once there is room. Prints one JSON
object: by step, how often it failed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from casemate.errors import OperationError
from support.generations import Device, content, generation, require_sound

PAGE = 4096
SIZE = 1 << 20
INODES = 200
LIMIT = 200


def fill(place: Path, kind: str, room: int) -> None:
    """Take all but *room* pages or files."""
    facts = os.statvfs(place)
    if kind == "files":
        for number in range(facts.f_ffree - room - 1):  # and the directory
            (place / "ballast").mkdir(exist_ok=True)
            (place / "ballast" / str(number)).touch()
    else:
        (place / "ballast").write_bytes(bytes((facts.f_bfree - room) * facts.f_bsize))


def empty(place: Path) -> None:
    ballast = place / "ballast"
    if ballast.is_dir():
        shutil.rmtree(ballast)
    else:
        ballast.unlink()


def check(device: Device) -> None:
    device.store.checked(content(2), ["saffron"])


def stage(device: Device) -> None:
    record, files = generation(device.store.state().pending, 2)
    device.store.stage(record, files)


def boot(device: Device) -> None:
    """A trial that cannot be counted does not start, and the device runs what it had."""
    booted = device.store.boot()
    if not booted.trial:
        assert booted.generation.set_generation == 1
        raise OperationError(booted.note)


def made(device: Device) -> None:
    """The vault's part, with room: not the step that is tested."""
    (device.models / f"saffron.g{device.store.state().pending}").touch()


STEPS = {
    "checked": check,
    "fetching": lambda device: device.store.fetching(),
    "made": made,
    "stage": stage,
    "arm": lambda device: device.store.arm(),
    "boot": boot,
    "mark_good": lambda device: device.store.mark_good(2),
    "gc": lambda device: device.store.gc(),
    "confirm": lambda device: device.store.confirm(),
    "fail": lambda device: device.store.rollback(),
}


def attempt(place: Path, kind: str, last: str, room: int) -> bool:
    """Fill the disk before the step *last*; returns whether the step worked all the same."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},nr_inodes={INODES}", "none", place], check=True)
    try:
        device = Device(place / "device").create()
        device.update(1)
        for name, step in STEPS.items():
            if (name, last) == ("confirm", "fail"):
                continue  # after it there is nothing to roll back to
            if name == last:
                break
            step(device)
        fill(place, kind, room)
        before = device.store.status()
        try:
            step(device)
            worked = True
        except OperationError:
            worked = False
            now = device.store.status()
            assert (now.state, now.good, now.trial) == (before.state, before.good, before.trial)
            if last != "boot":  # every boot takes a try
                assert device.runs() in {1, 2}
        empty(place)
        require_sound(place / "device", {1, 2}, newest=4)
        return worked
    finally:
        subprocess.run(["umount", place], check=True)


def main(kind: str) -> None:
    place = Path(tempfile.mkdtemp(prefix="casemate-full-"))
    failed = {}
    try:
        for name in STEPS:
            if name != "made":
                failed[name] = next(room for room in range(LIMIT) if attempt(place, kind, name, room))
    finally:
        place.rmdir()
    print(json.dumps(failed))  # noqa: T201 - a program


if __name__ == "__main__":
    main(sys.argv[1])
