"""`casemate device enrol`, `status` and `leave` against a real TLS server."""

from __future__ import annotations

import json
import os

import pytest

from casemate.device.fleet.orders import OrdersFile, State
from casemate.device.home import Home
from support import device, fleet_server


@pytest.fixture
def fleet(tmp_path):
    with fleet_server.serving(tmp_path / "fleet") as server:
        yield server


@pytest.fixture
def environ(tmp_path):
    tmp_path.chmod(0o755)
    return device.environment(tmp_path / "home")


def token_file(tmp_path, fleet):
    path = tmp_path / "token"
    path.write_text(fleet.token + "\n")
    return str(path)


def ask(environ, *arguments, code=0):
    done = device.cli(environ, "device", *arguments, "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_join_status_leave(fleet, environ, tmp_path):
    assert ask(environ, "status")["enrolled"] is False
    joined = ask(environ, "enrol", fleet.enrol_url, "--token-file", token_file(tmp_path, fleet))
    state = ask(environ, "status")
    assert (state["enrolled"], state["id"], state["fleet"]) == (True, joined["id"], fleet.fleet)
    assert (state["state"], state["quarantined"]) == ("serving", False)
    key = tmp_path / "home" / "link" / "device.key"
    assert key.stat().st_mode & 0o777 == 0o600
    if os.geteuid() == 0:
        assert key.stat().st_uid != (tmp_path / "home" / "fleet" / "member.json").stat().st_uid
    again = ask(environ, "enrol", fleet.enrol_url, "--token-file", token_file(tmp_path, fleet), code=6)
    assert "already" in again["error"]["message"]
    assert ask(environ, "leave", "--yes")["enrolled"] is False
    assert not key.exists()
    assert ask(environ, "leave", "--yes", code=5)


def test_a_used_token_a_wrong_server_and_no_token(fleet, environ, tmp_path):
    fleet.tokens.clear()
    spent = ask(environ, "enrol", fleet.enrol_url, "--token-file", token_file(tmp_path, fleet), code=4)
    assert spent["error"]["hint"]
    (tmp_path / "token").write_text("hello")
    assert ask(environ, "enrol", fleet.enrol_url, "--token-file", str(tmp_path / "token"), code=10)
    assert ask(environ, "status")["enrolled"] is False


def test_a_quarantined_device_cannot_leave_and_says_so_with_exit_11(fleet, environ, tmp_path):
    ask(environ, "enrol", fleet.enrol_url, "--token-file", token_file(tmp_path, fleet))
    file = OrdersFile(Home(tmp_path / "home"))
    held = file.read()
    file.write(type(held)(1, State.QUARANTINED, 1, held.signed))
    assert ask(environ, "status", code=11)["quarantined"] is True
    assert ask(environ, "leave", "--yes", code=11)["error"]["code"] == "policy_denied"
    file.path.write_bytes(b"damaged")
    assert ask(environ, "status", code=10)["error"]["check"] == "fleet-orders"
    assert ask(environ, "leave", "--yes")["enrolled"] is False


def test_a_device_that_runs_takes_up_its_link_when_it_is_enrolled_and_keeps_it_from_leaving(fleet, environ, tmp_path):
    with device.running(tmp_path / "home") as up:
        assert up.refresh()["fleet"] is None
        ask(environ, "enrol", fleet.enrol_url, "--token-file", token_file(tmp_path, fleet))
        fleet.wait(lambda: fleet.checkins, 30)
        assert up.refresh()["fleet"]["state"] == "serving"
        assert fleet.order(ask(environ, "status")["id"], "ping", 30).outcome == "done"
        assert ask(environ, "leave", "--yes", code=6)
