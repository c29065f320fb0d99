"""Cuts the power of `generation_writer` at block level, as a program: `SCENARIO STATES [no-fsync]`, run as root.

The writer works on ext4 on a loop device on a disk of qemu-storage-daemon that logs every write and flush, while a
bystander syncs a file of its own (without one, ext4 hides missing syncs). Then states of that disk after a cut are
made, mounted (the journal is replayed) and held against `require_sound`. Prints one JSON object.

It runs in a mount namespace of its own, so nothing stays mounted whatever happens to it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import block_log, generations, kill_points
from support.generations import require_sound

IMAGE_BYTES = 24 << 20
TOOLS = ("qemu-storage-daemon", "fusermount3", "mkfs.ext4", "mount", "losetup", "unshare")
DEVICES = ("/dev/loop-control", "/dev/fuse")
BYSTANDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    os.write(fd, os.urandom(512))  # it grows, so a sync of it commits the names and sizes of all files
    os.fdatasync(fd)
"""


def missing() -> list[str]:
    """Return what this machine lacks for it."""
    lacks = [tool for tool in TOOLS if shutil.which(tool) is None]
    lacks += [device for device in DEVICES if not os.access(device, os.R_OK | os.W_OK)]
    if not lacks and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        lacks.append("mount namespaces")
    return lacks


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def record(work: Path, *arguments: str) -> bytes:
    """Let the writer work on a logged disk (`work/log`); returns the disk as it was before."""
    image, mounted, exported = work / "base.img", work / "mnt", work / "export"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    (work / "log").touch()
    os.truncate(work / "log", 1 << 30)
    mounted.mkdir()
    exported.touch()
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    run("mount", "-o", "loop", image, mounted)
    generations.begin(mounted / "device", arguments[0])
    run("umount", mounted)
    start = image.read_bytes()
    daemon = subprocess.Popen(
        [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=f,filename={image},cache.direct=off"),
            *("--blockdev", f"driver=file,node-name=l,filename={work / 'log'}"),
            *("--blockdev", "driver=blklogwrites,node-name=x,file=f,log=l,log-sector-size=512"),
            *("--export", f"type=fuse,id=e,node-name=x,mountpoint={exported},writable=on,growable=off"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while exported.stat().st_size != IMAGE_BYTES:
            assert daemon.poll() is None, "qemu-storage-daemon ended"
            assert time.monotonic() < deadline, "qemu-storage-daemon does not export the disk"
            time.sleep(0.02)
        run("mount", "-o", "loop,noauto_da_alloc", exported, mounted)
        write(mounted, *arguments)
        run("umount", mounted)
    finally:
        daemon.send_signal(signal.SIGTERM)  # a clean end completes the log's header
        daemon.wait(30)
    return start


def write(mounted: Path, *arguments: str) -> None:
    bystander = subprocess.Popen([sys.executable, "-S", "-c", BYSTANDER, str(mounted / "bystander")])
    try:
        subprocess.run(
            kill_points.command(str(mounted / "device"), *arguments),
            env=os.environ | kill_points.environment(),
            stdin=subprocess.DEVNULL,
            check=True,
        )
    finally:
        bystander.kill()
        bystander.wait()


def judge(work: Path, name: int, start: bytes, blocks: block_log.Blocks, allowed: set[int]) -> str:
    """Mount one state of the disk and use the device on it; returns what is bad about it, or nothing.

    Every state has a file and a directory of its own: the kernel caches loop devices by name.
    """
    image, mounted = work / f"{name}.img", work / f"{name}.mnt"
    with image.open("wb") as file:
        file.write(start)
        for number, data in blocks.items():
            file.seek(number * block_log.PIECE)
            file.write(data)
    mounted.mkdir()
    run("mount", "-o", "loop,nobarrier", image, mounted)
    try:
        require_sound(mounted / "device", allowed, newest=4)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what a device would have met
        return f"{type(error).__name__}: {error}"
    finally:
        run("umount", mounted)
        image.unlink()
        mounted.rmdir()
    return ""


def main(scenario: str, wanted: str, *options: str) -> None:
    allowed = {"first": {0, 2}, "confirm": {1, 2}, "fall_back": {1, 2, 3}}[scenario]
    work = Path(tempfile.mkdtemp(prefix="casemate-power-", dir=generations.memory()))
    try:
        start = record(work, scenario, *options)
        states = block_log.torn_states(start, work / "log", seed=1)
        chosen = sorted(random.Random(2).sample(range(len(states)), min(int(wanted), len(states))))
        bad = [(name, judge(work, name, start, states[name], allowed)) for name in chosen]
        last = judge(work, len(states), start, states[-1], {2} if scenario != "fall_back" else {1})
        summary = {
            "distinct": len(states),
            "tried": len(chosen),
            "bad": [(name, why) for name, why in bad if why],
            "finished": last,
            "epochs": sum(1 for _ in block_log.epochs(work / "log")),
            "writes": sum(len(writes) for writes in block_log.epochs(work / "log")),
        }
        print(json.dumps(summary))  # noqa: T201 - a program
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
