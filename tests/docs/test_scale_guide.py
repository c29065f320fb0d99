"""docs/scale.md, followed literally: every command and the configuration, as a user would start them."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from casemate.cli.main import run
from support import databases, replicas
from support.fleet import Device, until
from support.nats import SERVER, Nats
from support.replicas import GUIDE, Listener, Replica, Site

COMMAND = re.compile(r"^\$ (.*)$", re.MULTILINE)


class Follower:
    """Runs what the page says, with this test's paths, ports and database."""

    def __init__(self, run_in):
        self.site = Site(run_in)
        self.broker = Nats(run_in)
        (run_in / "usb").mkdir()

    def local(self, line):
        place = f"{self.site.run}/"
        text = line.replace("/srv/", place).replace("/run/casemate/", place).replace("/media/usb/", f"{place}usb/")
        text = text.replace("postgresql://fleet@db.example.org/fleet", self.site.url).replace("/var/lib/", place)
        text = text.replace("https://fleet.example.org:8444", f"https://localhost:{self.site.ports['devices']}")
        text = text.replace("https://fleet.example.org", f"https://localhost:{self.site.ports['people']}")
        return text.replace("fleet.example.org", "localhost").replace("4222", str(self.broker.port))

    def follow(self, line):
        words = shlex.split(self.local(line))
        if words[:3] == ["casemate", "fleet", "serve"]:
            self.serve(words[3:])
        elif words[0] == "casemate":
            assert run(words[1:]) == 0, line
        elif words[0] == "nats-server":
            self.broker.process = subprocess.Popen(
                [SERVER, *words[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            until(self.broker._listens)
        else:
            subprocess.run(["bash", "-euc", self.local(line)], check=True, timeout=30, stdin=subprocess.DEVNULL)

    def serve(self, words):
        directory = words[words.index("--dir") + 1]
        rest = [word for word in words if word not in {"--dir", directory}]
        options = [f"{name}={value}" for name, value in zip(rest[::2], rest[1::2], strict=True)]
        server = Replica(self.site.run / directory.rpartition("/")[2], *options)
        server.ports = self.site.ports
        self.site.servers.append(server)
        server.start()

    def close(self):
        for server in self.site.servers:
            server.stop()
        self.broker.kill()


@pytest.fixture
def follower(tmp_path):
    found = Follower(tmp_path)
    yield found
    found.close()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_servers_postgresql_nginx_and_nats_work_as_the_page_says(follower, tmp_path):
    site, text = follower.site, GUIDE.read_text(encoding="utf-8")
    before, _, after = text.partition("## NATS")
    for line in COMMAND.findall(before):
        follower.follow(line)
    assert [each.directory.name for each in site.servers] == ["fleet-a", "fleet-b"]
    assert not (site.servers[1].directory / "ca" / "root.key").exists()
    with replicas.nginx(site.run, site.body(), site.ports["devices"]):
        device = Device(site.servers[0], tmp_path / "device", "till").enrol()
        assert device.checkin().status == 200
        assert site.servers[0].get("people", "/healthz").json() == {"ok": True}
        for line in COMMAND.findall(after):
            follower.follow(line)
        bus = re.search(r"`--bus (nats://[^`]+)`", after).group(1)
        for server in site.servers:  # one after the other, as the page has it
            server.stop()
            server.options.append(f"--bus={follower.local(bus)}")
            server.start()
            server.options.pop()  # remembered
            assert device.checkin().status == 200
        until(lambda: batches(site, "stream", device) > 0 and batches(site, "written") > 0)
        ear = Listener(device)
        ear.start()
        until(lambda: ear.open)
        site.servers[1].cli("device", "quarantine", "till")
        until(lambda: "wake" in ear.heard, 5)
        until(lambda: device.checkin().json().get("commands"))
        follower.broker.kill()
        assert device.checkin(agent="without nats").status == 200
        until(lambda: site.servers[0].device("till")["agent"] == "without nats")
        databases.cut_connections(site.url)
        until(lambda: device.checkin().status == 200)
        ear.ending.set()


def batches(site, outcome, device=None):
    if device:
        device.checkin()
    found = 0.0
    for server in site.servers:
        page = replicas.directly(server, "/metrics").body.decode()
        line = f'casemate_fleet_batches_total{{outcome="{outcome}"}}'
        found += sum(float(each.rpartition(" ")[2]) for each in page.splitlines() if each.startswith(line))
    return found
