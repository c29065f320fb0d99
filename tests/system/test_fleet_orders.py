"""A fleet commands a running device: quarantine, release, wipe; with real packets where root runs it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import device, fleet_server, netns
from support.fleet_server import FleetServer
from support.netns import Network

pytestmark = pytest.mark.timeout(180)
ROOT = os.geteuid() == 0
WITHIN = 25.0  # five times the contract's five seconds: the machine may be busy


@dataclass
class Site:
    """A device and its fleet; as root each in a network namespace of its own."""

    fleet: FleetServer
    home: Path
    net: Network | None
    other: tuple[str, int] | None
    environ: dict[str, str]
    id: str = ""

    @property
    def enter(self) -> list[str]:
        return self.net.enter if self.net else []

    def cli(self, *arguments: str, code: int = 0) -> dict:
        done = subprocess.run(
            [*self.enter, sys.executable, "-m", "casemate", *arguments, "--json"],
            env=self.environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def ask(self, running: device.Device) -> tuple[int, dict]:
        """Ask the model one question; returns the status and the body."""
        body = {"model": "saffron", "messages": [{"role": "user", "content": "Sushi for two?"}], "max_tokens": 4}
        headers = ["-H", f"Authorization: Bearer {running.key}", "-H", "Content-Type: application/json"]
        url = f"{running.endpoint}/v1/chat/completions"
        done = subprocess.run(
            [*self.enter, "curl", "-s", "-m", "30", "-w", "\n%{http_code}", *headers, "-d", json.dumps(body), url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        text, _, status = done.stdout.rpartition("\n")
        return int(status or 0), json.loads(text or "{}")

    def up(self, *, ready: bool = True):
        return device.running(self.home, ready=ready, enter=self.enter)

    def reaches_others(self) -> bool:
        """Whether a host that is not the fleet can be reached from the device; without root nothing is fenced."""
        if not self.net or not self.other:
            return True
        try:
            with netns.dial(self.net, self.other, 1.0) as connection:
                return netns.says(connection)
        except OSError:
            return False

    def roles(self, running: device.Device) -> set[str]:
        return {process["role"] for process in running.refresh()["processes"]}


@contextlib.contextmanager
def enrolled(tmp_path: Path) -> Iterator[Site]:
    tmp_path.chmod(0o755)
    with contextlib.ExitStack() as held:
        net = outside = other = None
        host = "127.0.0.1"
        if ROOT:
            net, outside = (held.enter_context(netns.network()) for _ in range(2))
            netns.join(outside, net, "10.77.0.1/24", "10.77.0.2/24")
            outside.run("ip", "address", "add", "10.77.0.9/24", "dev", "eth0")
            other = held.enter_context(netns.answering(outside, "10.77.0.9"))
            host = "10.77.0.1"
        fleet = held.enter_context(fleet_server.serving(tmp_path / "fleet", host=host, net=outside))
        site = Site(fleet, tmp_path / "home", net, other, device.environment(tmp_path / "home"))
        (tmp_path / "token").write_text(fleet.token)
        joined = site.cli("device", "enrol", fleet.enrol_url, "--token-file", str(tmp_path / "token"))
        site.id = joined["id"]
        yield site


def until(what, within=WITHIN):
    deadline = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def test_quarantine_stops_the_device_outlives_a_restart_and_ends_only_by_a_signed_release(tmp_path):
    with enrolled(tmp_path) as site:
        with site.up() as running:
            assert site.ask(running)[0] == 200
            assert site.reaches_others()
            until(lambda: site.fleet.listening)
            assert site.fleet.order(site.id, "ping").outcome == "done"
            vault, engine = running.pid_of("vault"), running.pid_of("engine")
            answer = site.fleet.order(site.id, "quarantine", WITHIN)
            assert answer.outcome == "done"
            assert answer.facts == {"engines_stopped": True, "keys_dropped": True, "network_fenced": ROOT}
            assert not any(Path(f"/proc/{pid}").exists() for pid in (vault, engine))
            status, body = site.ask(running)
            assert (status, body["error"]["code"]) == (503, "quarantined")
            assert site.cli("status", code=11)["fleet"]["state"] == "quarantined"
            assert site.cli("device", "status", code=11)["quarantined"] is True
            assert site.reaches_others() is not ROOT
            assert running.stop() == 0
        with site.up(ready=False) as running:
            until(lambda: site.roles(running) == {"journal", "link"})
            assert site.cli("device", "status", code=11)["quarantined"] is True
            forged = fleet_server.SigningKey.generate()
            mine, site.fleet.commander = site.fleet.commander, forged
            site.fleet.send(site.fleet.command(site.id, "release"), "forged")
            until(lambda: site.fleet.listening)
            site.fleet.commander = mine
            assert site.fleet.order(site.id, "ping", WITHIN).outcome == "done"
            assert site.roles(running) == {"journal", "link"}
            site.fleet.waiting.pop("forged")
            assert site.fleet.order(site.id, "release", WITHIN).outcome == "done"
            running.wait_ready()
            assert site.ask(running)[0] == 200
            assert site.reaches_others()
            refused = running.events("fleet_command_refused")
            assert any("envelope-signature" in json.dumps(row) for row in refused)


def test_wipe_destroys_the_keys_proves_it_and_the_models_never_open_again(tmp_path):
    with enrolled(tmp_path) as site:
        keystore = site.home / "keystore" / "keystore.json"
        with site.up() as running:
            keyfile = Path(site.environ["CASEMATE_KEYFILE"])
            copies = {path: path.read_bytes() for path in (keystore, keyfile)}
            assert site.cli("model", "verify", "saffron")
            until(lambda: site.fleet.listening)
            answer = site.fleet.order(site.id, "wipe", WITHIN)
            assert answer.outcome == "done"
            assert answer.facts["keys_destroyed"]
            assert not any(site.home.joinpath("keystore").iterdir())
            assert not keyfile.exists()
            assert running.process.wait(WITHIN) == 11
        assert not (site.home / "link" / "device.key").exists()
        assert site.cli("device", "status", code=11)["state"] == "wiped"
        with site.up(ready=False) as running:
            assert running.process.wait(WITHIN) == 11
        assert not keystore.exists()
        site.cli("device", "leave", "--yes")
        for path, data in copies.items():  # whoever copied both before still finds no wrapped key in the container
            path.write_bytes(data)
        assert site.cli("model", "verify", "saffron", code=10)


def test_a_wipe_that_was_cut_off_goes_on_when_the_device_starts(tmp_path):
    with enrolled(tmp_path) as site:
        site.fleet.acknowledge = False
        with site.up() as running:
            until(lambda: site.fleet.listening)
            name = site.fleet.send(site.fleet.command(site.id, "wipe"))
            until(lambda: not any((site.home / "keystore").iterdir()))
            assert site.cli("device", "status", code=11)["state"] == "wiping"
            running.process.kill()
            running.process.wait()
        site.fleet.acknowledge = True
        with site.up(ready=False) as running:
            assert running.process.wait(WITHIN) == 11
        assert {answered for answered, _ in site.fleet.answers} == {name}
        assert site.cli("device", "status", code=11)["state"] == "wiped"
