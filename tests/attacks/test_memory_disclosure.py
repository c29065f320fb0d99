"""Another process of the same user reads keys, prompts or weights out of a running one: /proc/PID/mem, /proc/PID/fd, a
core file. The control is the same victim without `harden()`: there the spy gets the secret.

Root is not stopped by this and nothing here claims so: as root, victim and spy run as an ordinary uid.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import subprocess
import sys
import textwrap

import pytest

from casemate.device.home import owner_of
from support.device import descendants, holds, running

SECRET = "canary-5b1f0c7d2e9a4866"
ORDINARY_UID = 61990

VICTIM = """
    import os, resource, sys
    from casemate.device import process
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    secret = bytearray(sys.stdin.buffer.readline().strip())
    weights = os.memfd_create("weights")
    os.write(weights, secret)
    if sys.argv[1] == "hardened":
        process.harden()
    print(weights, resource.getrlimit(resource.RLIMIT_CORE)[0], flush=True)
    sys.stdin.read()
"""

SPY = """
    import json, os, subprocess, sys
    victim = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)
    victim.stdin.write(sys.stdin.buffer.readline())
    victim.stdin.flush()
    fd, core = victim.stdout.readline().split()
    secret = sys.argv[3].encode()

    def from_descriptor():
        return secret in open(f"/proc/{victim.pid}/fd/{int(fd)}", "rb").read()

    def from_memory():
        with open(f"/proc/{victim.pid}/maps") as maps, open(f"/proc/{victim.pid}/mem", "rb", 0) as memory:
            for line in maps:
                span, rights, *rest = line.split()
                if not rights.startswith("rw") or "[vvar]" in rest:
                    continue
                low, high = (int(part, 16) for part in span.split("-"))
                memory.seek(low)
                if secret in memory.read(min(high - low, 64 << 20)):
                    return True
        return False

    def attempt(read):
        try:
            return "read it" if read() else "nothing there"
        except PermissionError:
            return "denied"

    print(json.dumps({"descriptor": attempt(from_descriptor), "memory": attempt(from_memory), "core": int(core)}))
    victim.kill()
    victim.wait()
"""


def spy_on(kind: str) -> dict[str, object]:
    """Run a spy, whose child the victim is (so that Yama's scope 1 would let it), and return what it got."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SPY), textwrap.dedent(VICTIM), kind, SECRET],
        input=SECRET.encode() + b"\n",
        capture_output=True,
        check=True,
        timeout=60,
        user=ORDINARY_UID if os.geteuid() == 0 else None,
        cwd="/",
    )
    result: dict[str, object] = json.loads(run.stdout)
    return result


def attach_is_forbidden_everywhere() -> bool:
    scope = pathlib.Path("/proc/sys/kernel/yama/ptrace_scope")
    return scope.exists() and int(scope.read_text()) >= 2


def test_a_hardened_process_keeps_memory_and_descriptors_from_its_own_uid():
    assert spy_on("hardened") == {"descriptor": "denied", "memory": "denied", "core": 0}


def test_control_a_plain_process_gives_both_away():
    found = spy_on("plain")
    assert found["descriptor"] == "read it"
    if attach_is_forbidden_everywhere():
        pytest.skip("this kernel forbids reading any process's memory: the control cannot fire")
    assert found["memory"] == "read it"
    assert found["core"] == resource.getrlimit(resource.RLIMIT_CORE)[1]


@pytest.mark.root
def test_the_passphrase_is_in_no_process_but_the_vault(tmp_path):
    """Also not in the agent, which is a fork of the process that made the keystore."""
    phrase = b"quince-lantern-4471"
    (tmp_path / "phrase").write_bytes(phrase)
    with running(tmp_path / "home", environ={"CASEMATE_PASSPHRASE_FILE": str(tmp_path / "phrase")}) as device:
        pids = descendants(device.process.pid) - {device.pid_of("vault")} | {device.process.pid}
        agents = [
            pid
            for pid in pids
            if f"\nUid:\t{owner_of('agent').uid}\t" in pathlib.Path(f"/proc/{pid}/status").read_text()
        ]
        assert [holds(pid, str(device.home).encode()) for pid in agents] == [True], (
            "the control: what it knows is found"
        )
        assert not [pid for pid in pids if holds(pid, phrase)]
