"""Root's way into the sandbox: an interpreter nobody else can reach, and a process that is nobody on the host."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import casemate
from casemate.device.home import owner_of

pytestmark = pytest.mark.root

START = """
import subprocess, sys
from casemate.device.sandbox import SandboxPlan, engine_command
uid = int(sys.argv[1])
sys.exit(subprocess.run(engine_command(SandboxPlan(module="site", uid=uid, gid=uid))).returncode)
"""


@pytest.fixture
def hidden_interpreter(tmp_path):
    """A virtual environment and a copy of this package behind a directory that only root may enter."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", locked / "venv"], check=True)
    shutil.copytree(Path(casemate.__file__).parent, locked / "src" / "casemate", ignore=shutil.ignore_patterns("data"))
    (site,) = (locked / "venv" / "lib").glob("python*/site-packages")
    (site / "here.pth").write_text(f"{locked}/src\n")
    return locked / "venv" / "bin" / "python"


def test_a_hidden_interpreter_is_made_reachable(hidden_interpreter):
    uid = owner_of("engine").uid
    done = subprocess.run(
        [hidden_interpreter, "-I", "-c", START, str(uid)], capture_output=True, text=True, check=False, umask=0o077
    )
    assert done.returncode == 0, done.stderr
    assert str(hidden_interpreter.parents[1]) in done.stdout


def test_control_the_uid_itself_cannot_reach_it(hidden_interpreter):
    uid = owner_of("engine").uid
    with pytest.raises(PermissionError):
        subprocess.run([hidden_interpreter, "-c", ""], check=True, user=uid, group=uid, extra_groups=())


def test_the_host_keeps_its_own_mounts(hidden_interpreter):
    before = Path("/proc/self/mountinfo").read_text("ascii")
    uid = owner_of("engine").uid
    subprocess.run([hidden_interpreter, "-I", "-c", START, str(uid)], capture_output=True, check=True)
    assert Path("/proc/self/mountinfo").read_text("ascii") == before
