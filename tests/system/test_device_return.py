"""A whole device that lay in a cupboard until its certificate had ended: it comes back, or says what it needs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest

from casemate.crypto import client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.device.fleet.orders import OrdersFile
from casemate.device.home import Home
from support import netns
from support.device import cli, environment, running
from support.fleet import Server, until
from support.fleet import running as fleet
from support.returning import expired
from support.swtpm import needs_swtpm, software_tpm

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
WITHIN = 120


@pytest.fixture
def server(tmp_path):
    tmp_path.chmod(0o755)
    with fleet(tmp_path / "fleet") as started:
        yield started


def enrol(server, tmp_path, environ, enter=()):
    token = tmp_path / "token"
    token.write_text(server.token("till-1"))
    command = [*enter, sys.executable, "-m", "casemate", "device", "enrol", server.addresses["enrol"], "--json"]
    done = subprocess.run(
        [*command, "--token-file", str(token)],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=90,
        check=True,
    )
    return json.loads(done.stdout)["id"]


def put_away(server, home, name):
    """Leave the device in the cupboard: what it holds ended two weeks ago."""
    key = EcKey.load_pem((home / "link" / "device.key").read_bytes())
    (home / "link" / "device.crt").write_bytes(expired(server, name, key.public))


def ends(home):
    return client_certificate.from_pem((home / "link" / "device.crt").read_bytes())[0].not_after


def cut_off(up):
    return (up.refresh()["fleet"] or {}).get("cut_off")


def test_without_a_tpm_it_waits_for_a_click_and_says_so_and_is_back_after_it(server, tmp_path):
    home, environ = tmp_path / "home", environment(tmp_path / "home")
    name = enrol(server, tmp_path, environ)
    with running(home) as up:
        until(lambda: server.device(name)["last_seen"], WITHIN)
        server.cli("device", "ping", name)
        until(lambda: server.device(name)["commands_waiting"] == 0, WITHIN)
        sequence = OrdersFile(Home(home)).read().sequence
        assert sequence == 1
    put_away(server, home, name)
    old = ends(home)
    with running(home) as up:
        until(lambda: cut_off(up) == "waiting", WITHIN)
        said = cli(environ, "device", "status", "--json")
        assert (
            f"waiting for approval: `casemate fleet device approve {name}`" in json.loads(said.stdout)["link"]["link"]
        )
        shown = cli(environ, "device", "status").stdout
        assert "certificate expired on" in shown
        assert up.refresh()["ready"], "what it serves it serves"
        server.cli("device", "approve", name)
        until(lambda: not cut_off(up), WITHIN)
        server.cli("device", "ping", name)
        until(lambda: server.device(name)["commands_waiting"] == 0, WITHIN)
        assert OrdersFile(Home(home)).read().sequence == sequence + 1
    assert ends(home) > old
    assert server.device(name)["asset"] == "till-1"
    put_away(server, home, name)
    server.cli("device", "revoke", name)
    with running(home) as up:
        until(lambda: cut_off(up) == "refused", WITHIN)
        assert "this device is revoked" in up.status["fleet"]["link"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="quarantine fences a network: it must not be this machine's")
@needs_swtpm
def test_with_its_tpm_it_is_back_without_anybody_and_quarantined_as_it_was(tmp_path):
    tmp_path.chmod(0o755)
    home, server = tmp_path / "home", Server(tmp_path / "fleet")
    with netns.network() as net, software_tpm(tmp_path / "tpm") as chip, contextlib.ExitStack() as held:
        server.enter = net.enter
        server.start()
        held.callback(server.stop)
        extra = {"CASEMATE_KEYSTORE_TPM": chip.tcti}
        environ = environment(home, extra)
        name = enrol(server, tmp_path, environ, net.enter)
        with running(home, environ=extra, enter=net.enter):
            until(lambda: server.device(name)["last_seen"], WITHIN)
        put_away(server, home, name)
        old = ends(home)
        with running(home, environ=extra, enter=net.enter) as up:
            until(lambda: ends(home) > old, WITHIN)
            until(lambda: not cut_off(up) and (up.refresh()["fleet"] or {}).get("contact"), WITHIN)
            assert "device.return" in [entry["action"] for entry in server.device(name)["history"]]
            server.cli("device", "quarantine", name)
            until(lambda: server.device(name)["commands_waiting"] == 0, WITHIN)
            assert quarantined(environ)
        put_away(server, home, name)
        with running(home, environ=extra, enter=net.enter, ready=False) as up:
            until(lambda: ends(home) > old, WITHIN)
            until(lambda: not cut_off(up) and (up.refresh().get("fleet") or {}).get("contact"), WITHIN)
            assert quarantined(environ)
        assert server.device(name)["state"] == "quarantined"


def quarantined(environ):
    return json.loads(cli(environ, "device", "status", "--json", check=False).stdout)["quarantined"]
