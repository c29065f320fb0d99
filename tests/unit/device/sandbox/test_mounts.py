"""Code that lies in a closed directory: readable after root is given up, and nothing else of that directory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from casemate.device.sandbox import mounts

READ = """
import os, sys
from casemate.device.sandbox import mounts
tree, secret, opened = sys.argv[1:]
if opened == "yes":
    mounts.open_to_everyone([tree])
os.setgroups([]); os.setresgid(61900, 61900, 61900); os.setresuid(61900, 61900, 61900)
def look(path):
    try:
        return open(path).read()
    except OSError as error:
        return type(error).__name__
def write(path):
    try:
        open(path, "w"); return "written"
    except OSError as error:
        return type(error).__name__
print(look(tree + "/code.py"), look(secret), write(tree + "/new.py"))
"""


def test_the_topmost_closed_directory_is_found(tmp_path):
    tree = tmp_path / "closed" / "in" / "tree"
    tree.mkdir(parents=True)
    assert mounts.closed_directory(str(tree)) is None
    (tmp_path / "closed").chmod(0o700)
    assert mounts.closed_directory(str(tree)) == str(tmp_path / "closed")


@pytest.mark.root
@pytest.mark.parametrize(
    ("opened", "seen"),
    [
        ("yes", ["code", "FileNotFoundError", "OSError"]),
        ("no", ["PermissionError", "PermissionError", "PermissionError"]),
    ],
)
def test_code_stays_readable_and_its_neighbours_vanish(tmp_path, opened, seen):
    closed = tmp_path / "closed"
    tree = closed / "venv"
    tree.mkdir(parents=True)
    (tree / "code.py").write_text("code")
    (closed / "secret").write_text("secret")
    closed.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tree), str(closed / "secret"), opened],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env=os.environ,
    )
    assert done.stdout.split() == seen
    assert (closed / "secret").read_text() == "secret"  # the host sees no change
