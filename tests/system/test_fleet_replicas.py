"""Two servers on one PostgreSQL behind nginx: restarted, killed, without a database; nobody loses a command."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from support import databases, provider, replicas
from support.fleet import until
from support.replicas import Listener, Worker

WOKEN_WITHIN = 25.0  # five times what a quarantine may take
STOPS_WITHIN = 25.0
DEVICES = 4


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with replicas.running(tmp_path_factory.mktemp("site")) as started:
        yield started


@pytest.fixture(scope="module")
def listener(site, tmp_path_factory):
    device = replicas.Device(site.servers[0], tmp_path_factory.mktemp("ear"), "ear").enrol()
    found = Listener(device)
    found.start()
    until(lambda: found.heard)
    yield found
    found.ending.set()


class Load:
    """Devices at work, and orders for them from both servers' consoles."""

    def __init__(self, site, directory, name):
        self.site = site
        self.workers = [Worker(site.servers[0], directory, f"{name}-{number}") for number in range(DEVICES)]
        self.asked = dict.fromkeys((worker.device.asset for worker in self.workers), 0)
        self.unsure = dict(self.asked)
        """Orders that failed: the database may have been cut off before its yes to what it had done was heard."""
        self.ending = threading.Event()
        self.orders = threading.Thread(target=self._order, daemon=True)

    def _order(self):
        number = 0
        while not self.ending.is_set():
            asset = self.workers[number % DEVICES].device.asset
            try:
                self.site.servers[number % 2].cli("device", "ping", asset)
            except AssertionError:
                self.unsure[asset] += 1
                self.ending.wait(0.2)
            else:
                self.asked[asset] += 1
            number += 1

    def __enter__(self):
        for each in (*self.workers, self.orders):
            each.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.orders.join(30)
        until(lambda: all(len(each.obeyed) >= self.ordered(each) for each in self.workers), 60)
        time.sleep(0.5)  # what is done twice would be now
        for each in self.workers:
            each.ending.set()
        for each in self.workers:
            each.join(30)

    def ordered(self, worker):
        """Return how many commands there are for a device."""
        return databases.ask(self.site.url, f"SELECT count(*) FROM command WHERE device_id = '{worker.device.id}'")

    def check(self):
        """Nothing lost, nothing done twice, everything answered."""
        for worker in self.workers:
            asset, ordered = worker.device.asset, self.ordered(worker)
            assert 0 <= ordered - self.asked[asset] <= self.unsure[asset]
            assert worker.obeyed == list(range(1, ordered + 1)), worker.faults
            shown = self.site.servers[1].device(asset)["commands"]
            assert {each["state"] for each in shown} == {"done"}
            assert worker.checkins > 0


def restart_each(site):
    for server in site.servers:
        assert server.stop() == 0, server.log.read_text()
        server.start()


@pytest.mark.long
def test_one_is_restarted_and_one_is_killed_and_nothing_is_lost_or_doubled(site, tmp_path, listener):
    first, second = site.servers
    with Load(site, tmp_path, "short") as load:
        until(lambda: all(each.obeyed for each in load.workers))
        second.stop(signal.SIGKILL)
        done = sum(len(each.obeyed) for each in load.workers)
        until(lambda: sum(len(each.obeyed) for each in load.workers) > done)  # the other goes on alone
        second.start()
        until(lambda: listener.open)
        began = time.monotonic()
        assert first.stop() == 0, first.log.read_text()
        assert time.monotonic() - began < STOPS_WITHIN
        first.start()
    load.check()
    until(lambda: listener.open)
    listener.heard.clear()
    first.cli("device", "ping", "ear")
    until(lambda: "wake" in listener.heard, WOKEN_WITHIN)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_ten_rolling_restarts_under_load_lose_and_double_nothing(site, tmp_path):
    with Load(site, tmp_path, "long") as load:
        for _ in range(10):
            restart_each(site)
    load.check()
    assert sum(load.asked.values()) > 100


def test_a_database_that_is_restarted_is_waited_for(site, tmp_path, listener):
    with Load(site, tmp_path, "cut") as load:
        for _ in range(3):
            until(lambda: all(each.obeyed for each in load.workers))
            databases.cut_connections(site.url)
            time.sleep(0.3)
    load.check()
    until(lambda: listener.open)
    listener.heard.clear()
    site.servers[1].cli("device", "ping", "ear")
    until(lambda: "wake" in listener.heard, WOKEN_WITHIN)


def test_a_device_is_woken_whichever_server_holds_its_stream(site, tmp_path):
    """Four streams are spread over two servers; orders given at one console reach all of them."""
    ears = [Listener(replicas.Device(site.servers[0], tmp_path, f"spread-{number}").enrol()) for number in range(4)]
    for each in ears:
        each.start()
    try:
        until(lambda: all(each.open for each in ears))
        held = [server_streams(server) for server in site.servers]
        assert min(held) >= 1, held
        for each in ears:
            each.heard.clear()
            site.servers[0].cli("device", "quarantine", each.device.asset)
            until(lambda each=each: "wake" in each.heard, WOKEN_WITHIN)
    finally:
        for each in ears:
            each.ending.set()


def test_what_is_set_at_one_server_the_other_goes_by(site, tmp_path):
    """A provider that people may sign in with, and a mail server: no server is told, restarted or copied to."""
    first, second = site.servers
    secret = tmp_path / "secret"
    secret.write_text(provider.SECRET)
    assert b"Example" not in replicas.directly(second, "/sign-in").body, "control: nobody vouches yet"
    with provider.running() as idp:
        asked = ("--issuer", idp.issuer, "--client-id", provider.CLIENT, "--secret-file", str(secret))
        until(lambda: is_set(first, *asked, "--label", "Example"))
        assert b"Sign in with Example" in replicas.directly(second, "/sign-in").body
        away = until(lambda: (found := replicas.directly(second, "/sign-in/oidc")).status == 303 and found)
        assert idp.issuer in away.headers["location"], "it sends people there itself"
    first.cli("alert", "email", "server", "smtp.example.org:587", "--from", "fleet@example.org")
    assert second.cli("alert", "email", "show")["server"]["host"] == "smtp.example.org"
    second.cli("alert", "email", "off")
    second.cli("oidc", "remove")
    assert first.cli("alert", "email", "show")["server"] is None
    assert b"Example" not in replicas.directly(first, "/sign-in").body, "removed at one, it lets nobody in at any"


def is_set(server, *words):
    """Say whether the provider answered: on a busy machine it may be later than anybody waits for it."""
    try:
        server.cli("oidc", "set", *words)
    except AssertionError:
        return False
    return True


def server_streams(server):
    """Ask one server itself, past nginx, how many streams it holds."""
    page = replicas.directly(server, "/metrics").body.decode()
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("casemate_fleet_streams "))
