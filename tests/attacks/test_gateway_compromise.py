"""The gateway was taken over through its HTTP parser. What can a program with its uid read of the other processes?

The spy runs under the gateway's uid. The control reads the same places as their owner, or of a plain process, and
succeeds, so a refusal is a refusal and not a path that does not exist.

One thing an ordinary user cannot have: whoever owns a user namespace has every capability inside it, so processes of
the same user outside can read an engine's memory, dumpable or not. Started by root each process has a uid of its own
and that way is closed; started by a user, `status` says that it is open.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.device import running


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    root = tmp_path_factory.mktemp("compromise")
    root.chmod(0o755)
    with running(root / "home") as device:
        yield device


def uid_of(pid: int) -> int:
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "Uid:" in line)


def can_read(path: str | Path, uid: int) -> bool:
    """Whether a fresh process of *uid* gets a byte out of *path*."""
    identity = {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(["head", "-c", "1", str(path)], capture_output=True, timeout=30, check=False, **identity)
    return done.returncode == 0 and bool(done.stdout)


def can_list(path: str | Path, uid: int) -> bool:
    identity = {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(["ls", "-A", str(path)], capture_output=True, timeout=30, check=False, **identity)
    return done.returncode == 0 and bool(done.stdout)


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


MEMORY = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
place = (ctypes.c_size_t * 2)
byte = ctypes.create_string_buffer(1)
with open(f"/proc/{sys.argv[1]}/maps") as maps:
    start = next(int(line.split("-")[0], 16) for line in maps if " rw-p " in line)
mine, theirs = place(ctypes.addressof(byte), 1), place(start, 1)
sys.exit(libc.process_vm_readv(int(sys.argv[1]), mine, 1, theirs, 1, 0) != 1)
"""


def can_read_memory(pid: int, uid: int) -> bool:
    """Whether a fresh process of *uid* gets a byte of the memory of *pid*."""
    identity = {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}
    command = ["/usr/bin/python3", "-I", "-c", MEMORY, str(pid)]
    return subprocess.run(command, capture_output=True, timeout=30, check=False, cwd="/", **identity).returncode == 0


ROLES = ["vault", "journal", "gateway", pytest.param("engine", marks=pytest.mark.root)]


@pytest.mark.parametrize("role", ROLES)
def test_no_process_gives_memory_or_descriptors_to_the_gateways_uid(device, role):
    spy = uid_of(device.pid_of("gateway"))
    pid = device.pid_of(role)
    assert not can_read_memory(pid, spy)
    for name in ("maps", "environ"):
        assert not can_read(f"/proc/{pid}/{name}", spy)
    assert not can_list(f"/proc/{pid}/fd", spy)


@pytest.mark.skipif(os.geteuid() == 0, reason="as root every process has a uid of its own")
def test_as_a_user_the_engines_memory_is_open_to_that_user_and_status_says_so(device):
    assert can_read_memory(device.pid_of("engine"), os.getuid())
    (weak,) = (row for row in device.refresh()["degraded"] if row["code"] == "shared-uid")
    assert "memory" in weak["what"]
    assert "service install" in weak["fix"]


def test_control_a_plain_process_of_that_uid_gives_both(device):
    spy = uid_of(device.pid_of("gateway"))
    identity = {"user": spy, "group": spy, "extra_groups": []} if os.geteuid() == 0 else {}
    plain = subprocess.Popen(["sleep", "60"], **identity)
    try:
        assert can_read(f"/proc/{plain.pid}/maps", spy)
        assert can_read_memory(plain.pid, spy) or yama_forbids()
        assert can_list(f"/proc/{plain.pid}/fd", spy)
    finally:
        plain.kill()
        plain.wait()


def yama_forbids() -> bool:
    """Whether this kernel lets nobody but a parent read a process's memory: then the control cannot fire."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return scope.exists() and scope.read_text().strip() != "0"


@pytest.mark.root
@pytest.mark.parametrize("part", ["models", "keystore", "journal"])
def test_as_root_the_gateway_reads_no_container_no_keystore_and_no_log_key(device, part):
    spy = uid_of(device.pid_of("gateway"))
    found = files(device.home / part)
    assert found
    assert not [path for path in found if can_read(path, spy)]
    assert not can_list(device.home / part, spy)


@pytest.mark.root
@pytest.mark.parametrize(("part", "role"), [("models", "vault"), ("keystore", "vault"), ("journal", "journal")])
def test_control_their_owner_reads_them(device, part, role):
    owner = uid_of(device.pid_of(role))
    assert [path for path in files(device.home / part) if can_read(path, owner)]


WAYS_TO_CHANGE = [
    ["touch", "{apps}/mine.toml"],
    ["truncate", "-s0", "{apps}/apps.json"],
    ["rm", "-f", "{apps}/apps.json"],
]


def can_change_apps(home: Path, uid: int) -> bool:
    """Whether a process of *uid* gets a new app, an empty list or none at all into the store."""
    for way in WAYS_TO_CHANGE:
        command = [word.format(apps=home / "apps") for word in way]
        done = subprocess.run(
            command, user=uid, group=uid, extra_groups=[], capture_output=True, timeout=30, check=False
        )
        if done.returncode == 0:
            return True
    return False


@pytest.mark.root
def test_as_root_the_gateway_reads_the_apps_and_cannot_change_who_may_call(device):
    spy = uid_of(device.pid_of("gateway"))
    assert can_read(device.home / "apps" / "apps.json", spy)
    assert not can_change_apps(device.home, spy)


@pytest.mark.root
def test_control_who_owns_the_apps_can_change_them(device, tmp_path):
    spy = uid_of(device.pid_of("gateway"))
    (tmp_path / "apps").mkdir()
    os.chown(tmp_path / "apps", spy, spy)
    assert can_change_apps(tmp_path, spy)


@pytest.mark.root
def test_as_root_the_gateway_cannot_signal_another_process(device):
    spy = uid_of(device.pid_of("gateway"))
    for role in ("vault", "journal", "engine"):
        done = subprocess.run(
            ["kill", "-0", str(device.pid_of(role))],
            user=spy,
            group=spy,
            extra_groups=[],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode != 0
    assert device.refresh()["ready"]
