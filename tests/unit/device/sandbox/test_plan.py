from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.device.sandbox import SandboxPlan, plan
from casemate.errors import HostError

NEEDS_BWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def command(**options):
    made = SandboxPlan(module="x", fds={"A_FD": 7}, environment={"B": "c"}, **options)
    return plan.bubblewrap_command(made, "/usr/bin/bwrap", {"/opt/venv": "/run/0"})


def pairs(words):
    return set(itertools.pairwise(words))


def test_every_namespace_is_new_and_nothing_is_writable():
    words = command()
    for flag in (
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
    ):
        assert flag in words
    assert ("--cap-drop", "ALL") in pairs(words)
    assert ("--remount-ro", "/") in pairs(words)
    assert ("--remount-ro", "/dev") in pairs(words)
    assert not {"--bind", "--dev-bind", "--share-net", "--bind-try"} & set(words)


def test_trees_are_reached_where_they_are_and_seen_where_they_belong():
    words = command()
    at = words.index("/run/0")
    assert words[at - 1 : at + 2] == ["--ro-bind", "/run/0", "/opt/venv"]


def test_descriptors_become_variables_and_the_module_runs_isolated():
    words = command()
    assert ("A_FD", "7") in pairs(words)
    assert ("B", "c") in pairs(words)
    assert words[-3:] == ["-I", "-m", "x"]


def test_trees_never_hold_a_home_or_the_root(tmp_path, monkeypatch):
    real = tmp_path / "opt" / "python3"
    real.parent.mkdir()
    real.touch()
    link = tmp_path / "home" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    monkeypatch.setattr(sys, "executable", str(link))
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    trees = plan.interpreter_trees()
    assert str(tmp_path / "home") not in trees
    assert "/" not in trees
    assert str(real.parent) in trees
    assert plan.interpreter_links(trees) == [(str(real), str(link))]


def test_root_must_name_an_identity(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(plan, "find_bwrap", lambda: "/usr/bin/bwrap")
    for uid, gid in ((None, None), (0, 0), (5, None), (0, 5)):
        with pytest.raises(HostError):
            plan.engine_command(SandboxPlan(module="x", uid=uid, gid=gid))


def test_no_bubblewrap_is_exit_12_with_the_fix(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(HostError) as caught:
        plan.engine_command(SandboxPlan(module="x"))
    assert caught.value.exit_code == 12
    assert "apt install bubblewrap" in caught.value.hint


LOOK = """
import json, os, socket
processes = [pid for pid in os.listdir("/proc") if pid.isdigit()]
network = [name for _, name in socket.if_nameindex()]
print(json.dumps([os.getuid(), os.listdir("/"), dict(os.environ), network, processes]))
"""


@NEEDS_BWRAP
def test_what_a_process_finds_inside(monkeypatch):
    """As the ordinary command, whoever runs the test: root's way is tested in tests/system/test_engine.py."""
    monkeypatch.setenv("CASEMATE_TEST_SECRET", "visible")
    words = plan.bubblewrap_command(
        SandboxPlan(module="this"), plan.find_bwrap(), {tree: tree for tree in plan.interpreter_trees()}
    )
    words = [*words[: words.index("-m")], "-c", LOOK]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    uid, root, environment, network, processes = json.loads(done.stdout)
    assert uid == 65534
    system = {"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "proc", "dev", "tmp"}
    assert set(root) <= system | {Path(tree).parts[1] for tree in plan.interpreter_trees()}
    assert "CASEMATE_TEST_SECRET" not in environment
    assert network == ["lo"]
    assert len(processes) == 2


@NEEDS_BWRAP
@pytest.mark.parametrize("path", ["/x", "/dev/x", "/usr/x", "/etc/x"])
def test_nothing_is_writable_inside(path):
    words = plan.bubblewrap_command(
        SandboxPlan(module="this"), plan.find_bwrap(), {tree: tree for tree in plan.interpreter_trees()}
    )
    words = [*words[: words.index("-m")], "-S", "-c", f"open({path!r}, 'w')"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Read-only" in done.stderr or "Permission denied" in done.stderr
