"""The tutorial works: its commands run, in order, against a device that was started as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.device import running

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "tutorial" / "first-model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [
    command
    for language, body in BLOCKS
    if language == "console"
    for command in re.findall(r"^\$ (.+)$", body.replace("\\\n", " "), re.MULTILINE)
]
BY_HAND = ("make up", "casemate up", "casemate demo", "casemate keystore rotate --to passphrase")
"""In the foreground, asking for a passphrase, or with a test of its own."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Return a function that types a command as a reader would, beside a running device."""
    root = tmp_path_factory.mktemp("tutorial")
    root.chmod(0o755)
    (root / "src").symlink_to(ROOT / "src")
    (root / "kitchen.toml").write_text(next(body for language, body in BLOCKS if language == "toml"))
    with running(root / "home") as device:
        environ = {**device.environ, "KEY": device.key}
        environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"

        def types(command: str) -> subprocess.CompletedProcess[str]:
            here = command.replace("http://127.0.0.1:8080", device.endpoint)
            return subprocess.run(
                ["sh", "-c", here],
                env=environ,
                cwd=root,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        yield types


def test_the_commands_of_the_tutorial_work_in_order(reader):
    seen = {}
    for command in COMMANDS:
        if not command.startswith(BY_HAND):
            done = reader(command)
            assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
            seen[command] = done.stdout
    assert len(seen) >= 10
    shown = "\n".join(seen.values())
    assert "data: [DONE]" in shown
    assert "second" in shown
    assert "kitchen" in shown


def test_what_is_left_to_the_reader_is_in_the_tutorial():
    assert {by_hand for by_hand in BY_HAND if any(c.startswith(by_hand) for c in COMMANDS)} == set(BY_HAND)
