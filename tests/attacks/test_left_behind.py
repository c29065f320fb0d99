"""A taken-over process forks, so that a part of it stays under its uid when the device stops or starts it anew.

A parent-death signal does not reach it: a fork begins without one. The control is the same device without the reaper.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

TAKEN_OVER = """
import os, time
said, saying = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.close(1)
        os.close(saying)
        time.sleep(60)
    os._exit(0)
os.close(saying)
os.read(said, 1)
"""

DEVICE = """
import asyncio, subprocess, sys
from casemate.device import spawner
from casemate.device.home import owner_of

def start(role, owner, control, held):
    return subprocess.Popen([sys.executable, "-c", sys.argv[2]], user=owner.uid, group=owner.gid)

async def ask(launchers):
    process, link = await launchers.core("gateway")([])
    ended = asyncio.get_running_loop().create_future()
    process.watch(ended.set_result)
    await ended
    return 0

spawner.start_python = start
if sys.argv[1] == "control":
    spawner._Spawner._end_strays = lambda self: None
sys.exit(spawner.serve_as(owner_of("agent"), {}, lambda launchers: asyncio.run(ask(launchers))))
"""


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("way", "stays"), [("as built", False), ("control", True)])
def test_nothing_that_a_process_forked_outlives_it(way, stays):
    command = [sys.executable, "-c", DEVICE, way, TAKEN_OVER]
    device = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    fork = int(device.stdout)
    try:
        assert alive(fork) is stays
    finally:
        if stays:
            os.kill(fork, signal.SIGKILL)
