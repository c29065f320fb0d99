"""A real service manager for a test: systemd as process 1 of its own namespaces, over a copy-on-write view of `/`.

Nothing it writes outlives it, and it sees the machine's files, so the units run the very interpreter and package under
test. Needs root; where the host does not let it run, `machine` says why and the test is skipped with that reason.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import casemate

BOOT = """
set -e
top=$1 root=$1/root
mount -t tmpfs tmpfs $top
mkdir $root $top/upper $top/work
mount -t overlay overlay -o lowerdir=/,upperdir=$top/upper,workdir=$top/work $root
mount -t proc proc $root/proc
mount -t sysfs -o ro sysfs $root/sys
mount --rbind /dev $root/dev
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs $root/sys/fs/cgroup
    mkdir $root/sys/fs/cgroup/unified $root/sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 $root/sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup $root/sys/fs/cgroup/systemd
fi
mkdir -p $root/run/systemd/system
printf '[Unit]\\nDescription=test\\n' > $root/run/systemd/system/test.target
mkdir -p $root/mnt/before
cd $root
pivot_root . mnt/before
umount -l /mnt/before
mount --make-rshared /
export container=test
exec /lib/systemd/systemd --unit=test.target --log-target=null --show-status=0
"""
UP_WITHIN = 20.0


class Machine:
    """Commands run inside."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def root(self) -> Path:
        """The machine's file system, seen from here."""
        return Path(f"/proc/{self.pid}/root")

    def run(self, *command: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-a", "--", *command],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=180,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER": "", "LANG": "C.UTF-8"},
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def deepest(self, pid: int) -> int:
        """Follow the only-child chain down from *pid*, in the machine's own numbers."""
        while children := (self.root / f"proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[-1])
        return pid

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "-P", name, unit).stdout.strip()


def _child_of(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return None


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Boot a machine; everything in it dies with the block."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not Path("/lib/systemd/systemd").exists() or not shutil.which("systemctl"):
        pytest.skip("systemd is not installed")
    if any(place.startswith(("/tmp/", "/var/tmp/", "/run/")) for place in (sys.prefix, casemate.__file__)):
        pytest.skip("this checkout lies where services cannot see it")
    top = tempfile.mkdtemp(prefix="machine-")
    log = Path(top + ".log")
    with log.open("wb") as out:
        outer = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                "-fpmuinC",
                "--kill-child",
                "--propagation",
                "private",
                "/bin/sh",
                "-c",
                BOOT,
                "boot",
                top,
            ],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield _wait(outer, log)
    finally:
        outer.send_signal(signal.SIGKILL)
        outer.wait()
        log.unlink()
        os.rmdir(top)


def _wait(outer: subprocess.Popen[bytes], log: Path) -> Machine:
    deadline = time.monotonic() + UP_WITHIN
    while time.monotonic() < deadline and outer.poll() is None:
        inner = _child_of(outer.pid)
        if inner and Path(f"/proc/{inner}/comm").read_text().strip() == "systemd":
            found = Machine(inner)
            if found.run("systemctl", "is-system-running", check=False).stdout.strip() in {"running", "degraded"}:
                return found
        time.sleep(0.1)
    pytest.skip(f"systemd cannot run in namespaces here: {log.read_text()[-300:] or 'it did not come up'}")
