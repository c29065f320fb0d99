"""The how-to works: its commands run, in order, beside the web server and the device that it tells to start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import mirror
from support.device import environment, running
from support.updates import Follower

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "how-to" / "update-a-device.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [
    command
    for language, body in BLOCKS
    if language == "console"
    for command in re.findall(r"^\$ (.+)$", body.replace("\\\n", " "), re.MULTILINE)
]
SERVER, START = "python3 -m http.server", "casemate up"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_commands_of_the_how_to_work_in_order(tmp_path):
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "SPEC.toml").write_text(next(body for language, body in BLOCKS if language == "toml"))
    exported = {"CASEMATE_RELEASE_PASSPHRASE_FILE": "passphrase", "CASEMATE_RELEASE_REPO": "repository"}
    follower = Follower(tmp_path / "device" / "home")
    follower.home.parent.mkdir()
    environ = {**environment(follower.home), **{name: str(tmp_path / file) for name, file in exported.items()}}
    environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with mirror.serving(tmp_path / "repository" / "public") as server:

        def types(command: str) -> None:
            done = subprocess.run(
                ["sh", "-c", command.replace("http://127.0.0.1:8800/", server.url)],
                env=environ,
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"

        before, after = _parts()
        for command in before:
            types(command)
        with running(follower.home):
            deadline = time.monotonic() + 120
            while (found := follower.status)["state"] != "GOOD":
                assert time.monotonic() < deadline, found
                time.sleep(0.3)
            for command in after:
                types(command)
        assert follower.status["floor"] == {"model/saffron": 1}


def _parts() -> tuple[list[str], list[str]]:
    """Return the commands before the device starts and those after; what runs in the foreground is left out."""
    start = COMMANDS.index(START)
    plain = [
        [one for one in part if one != START and not one.startswith(SERVER)]
        for part in (COMMANDS[:start], COMMANDS[start:])
    ]
    assert len(plain[0]) >= 10
    assert len(plain[1]) >= 4
    return plain[0], plain[1]
