"""A real device of a real fleet, both in a network namespace of their own: enrol, quarantine, release, wipe."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time

import pytest

from casemate.device.fleet import fence, fencing
from casemate.device.home import Home
from support import device, netns
from support.fleet import Server, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a fence needs root"),
    pytest.mark.timeout(180),
]


@pytest.fixture
def net():
    with netns.network() as made:
        yield made


def run(net, environ, *arguments, code=0):
    done = subprocess.run(
        [*net.enter, sys.executable, "-m", "casemate", *arguments, "--json"],
        env=environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=90,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def stored_sets(server) -> list[int]:
    """Return how many items each stored inventory has."""
    with contextlib.closing(sqlite3.connect(f"file:{server.directory / 'fleet.db'}?mode=ro", uri=True)) as database:
        return [count for (count,) in database.execute("SELECT count FROM package_set")]


@pytest.mark.long
def test_enrol_quarantine_release_wipe(net, tmp_path):
    tmp_path.chmod(0o755)
    server = Server(tmp_path / "fleet")
    server.enter = net.enter
    server.start()
    try:
        environ = device.environment(tmp_path / "home")
        (tmp_path / "token").write_text(server.token("till-1"))
        joined = run(
            net, environ, "device", "enrol", server.addresses["enrol"], "--token-file", str(tmp_path / "token")
        )
        with device.running(tmp_path / "home", enter=net.enter) as up:
            until(lambda: (up.refresh()["fleet"] or {}).get("contact"))
            state = until(lambda: (found := server.device("till-1"))["last_seen"] and found)
            assert state["state"] == "enrolled"
            until(lambda: stored_sets(server))
            began = time.monotonic()
            server.cli("device", "quarantine", "till-1", "--reason", "seen in another town")
            until(lambda: "table inet casemate_quarantine" in net.run("nft", "list", "ruleset").stdout)
            acted = time.monotonic() - began
            assert acted < 25  # five times the contract's
            sys.stderr.write(f"quarantine acted after {acted:.2f} s\n")
            assert run(net, environ, "device", "status", code=11)["reason"] == "seen in another town"
            until(lambda: server.device("till-1")["commands_waiting"] == 0)
            server.cli("device", "release", "till-1")
            up.wait_ready()
            assert fence.TABLE not in net.run("nft", "list", "ruleset").stdout
            began = time.monotonic()
            server.cli("device", "wipe", "till-1", "--yes")
            assert up.process.wait(30) == 11
            sys.stderr.write(f"wipe done and proven after {time.monotonic() - began:.2f} s\n")
        assert not any((tmp_path / "home" / "keystore").iterdir())
        assert until(lambda: server.device(joined["id"])["state"] == "wiped")
    finally:
        server.stop()


def test_the_unit_fences_what_the_agents_file_says_and_nobody_when_it_is_damaged(net, tmp_path):
    tmp_path.chmod(0o755)
    home, done = Home(tmp_path / "home").create(), tmp_path / "done"
    code = (
        "import sys; from pathlib import Path\n"
        "from casemate.device.fleet import fencing; from casemate.device.home import Home\n"
        "print(fencing.enforce(Home(Path(sys.argv[1])), Path(sys.argv[2])))\n"
    )

    def enforce() -> tuple[str, str]:
        said = net.run(sys.executable, "-c", code, str(home.path), str(done)).stdout.strip()
        return said, net.run("nft", "list", "ruleset").stdout

    wanted = home.fleet / fencing.WANTED
    assert enforce() == ("", "")
    wanted.write_bytes(b'{"address":"10.1.2.3","port":8444}')
    said, ruleset = enforce()
    assert (said, "ip daddr 10.1.2.3 tcp dport 8444 accept" in ruleset) == ("", True)
    wanted.write_bytes(b'{"address":"10.1.2.3; accept"}')
    said, ruleset = enforce()
    assert "not a fence" in said
    assert "10.1.2.3" not in ruleset
    assert "policy drop" in ruleset
    wanted.write_bytes(b"null")
    assert enforce() == ("", "")
    wanted.unlink()
    wanted.symlink_to("/etc/passwd")
    assert net.run(sys.executable, "-c", code, str(home.path), str(done), check=False).returncode != 0
