"""Two servers of one fleet while a rollout runs, and the one that looks after it dies, or is stopped, in the middle.

The moment is made, not hoped for: the test holds a lock that a look needs, waits until the look waits for it, and acts.
Nobody is offered twice, nobody is lost, and no more devices meet the release than its batch has.
"""

from __future__ import annotations

import base64
import json
import signal

import pytest

from casemate.formats import director
from support import databases, published, replicas
from support.fleet import checkin, until

FIRST = 3
DEVICES = 9
TERMS = ("--soak", "1s", "--patience", "60s", "--install", "600s", "--come", "600s", "--control", "0", "--first", "3")
OFFERING, SETTLING = "device_pick", "rollout_device"
"""What a look writes last, and first."""


class Shop:
    """A fleet of two servers with a release, and devices that do as they are told."""

    def __init__(self, site, directory):
        self.site, self.directory = site, directory
        self.server = site.servers[0]
        tokens = {
            name: self.server.cli("api-token", "create", name, "--role", role)["token"]
            for name, role in (("ann", "release-manager"), ("bob", "security-officer"))
        }
        self.headers = {
            name: {"Authorization": f"Bearer {token}", "content-type": "application/json"}
            for name, token in tokens.items()
        }
        charter = json.loads((self.server.directory / "ca" / "charter.json").read_bytes())
        self.charter = json.loads(base64.b64decode(charter["payload"]))
        repository = published.create(directory / "repository")
        published.put(repository, directory / "made", "1.0.0")
        root = repository.metadata / "1.root.json"
        self.server.cli("release", "import", str(repository.directory), "--root", str(root))

    def leads(self, server):
        """Say whether *server* itself, asked past nginx, looks after rollouts."""
        page = replicas.directly(server, "/metrics").body.decode()
        return 'casemate_fleet_leads{duty="rollouts"} 1.0' in page

    def leader(self):
        """Return the server that looks after rollouts, and the other one."""
        found = until(lambda: [each for each in self.site.servers if self.leads(each)])
        assert len(found) == 1
        return found[0], next(each for each in self.site.servers if each is not found[0])


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    directory = tmp_path_factory.mktemp("failover")
    with replicas.running(directory) as site:
        yield Shop(site, directory)


class Rollout:
    """A rollout for a group of its own. `offers`: for each device the numbers of the picks that told it to take it."""

    def __init__(self, shop, group):
        self.shop = shop
        self.devices = [
            replicas.Device(shop.server, shop.directory, f"{group}-{number}").enrol(None, "--group", group)
            for number in range(DEVICES)
        ]
        self.through = None  # which server they reach; None: whichever nginx says
        self.held = dict.fromkeys(self.devices, 0)
        self.offers = {device: set() for device in self.devices}
        self.content = {}
        until(lambda: self.calls() or all(self.held.values()))  # from the import on nobody takes by himself
        shop.server.has_heard_of(*(device.asset for device in self.devices))  # a look that finds fewer offers less
        self.name = shop.server.cli("rollout", "create", "stable", "--group", group, *TERMS)["id"]
        for who, verb in (("bob", "approve"), ("ann", "start")):
            path = f"/api/v1/rollouts/{self.name}/{verb}"
            answer = shop.server.ask("people", "POST", path, b"{}", shop.headers[who])
            assert answer.status == 200, answer.body

    def ask(self, device, path, message):
        if self.through:
            return replicas.as_proxy(self.through, device, path, message)
        return device.ask("POST", path, message)

    def calls(self):
        """Have every device call once; who is told to take it takes it."""
        for device in self.devices:
            said = checkin(pick=self.held[device], generation=self.content.get(device, ""))
            answer = self.ask(device, "/device/v1/checkin", said)
            if answer.status != 200:
                continue  # its server was killed this moment: it comes again
            raw = answer.json().get("pick")
            if raw is None:
                continue
            pick = director.verify_pick(
                base64.b64decode(raw),
                public=base64.b64decode(self.shop.charter["director"]),
                fleet=self.shop.charter["fleet"],
                device=device.id,
                after=self.held[device],
                earliest=0,
            ).pick
            self.held[device] = pick.sequence
            if pick.action == "take":
                self.offers[device].add(pick.sequence)
                self.content[device] = pick.choice.content

    def say(self):
        """Have who took it say that it runs."""
        for device, content in self.content.items():
            word = director.Word(1, self.shop.charter["fleet"], device.id, content, "good", 1)
            raw = director.sign_word(director.encode_word(word), device.key)
            body = {"word": base64.b64encode(raw).decode()}
            until(lambda device=device, body=body: self.ask(device, "/device/v1/generation", body).status == 204)

    def status(self):
        return self.shop.server.cli("rollout", "status", self.name)

    def exposed(self):
        return sum(map(bool, self.offers.values()))

    def until_exposed(self, count):
        until(lambda: self.calls() or self.exposed() == count, 120)

    def until_done(self):
        def done():
            self.calls()
            self.say()
            return self.status()["state"] == "done"

        until(done, 120)

    def check(self):
        """Each device was told once, and each is good."""
        found = self.status()
        assert {key: found[key] for key in ("offered", "good", "failed", "silent")} == {
            "offered": DEVICES,
            "good": DEVICES,
            "failed": 0,
            "silent": 0,
        }
        assert {len(each) for each in self.offers.values()} == {1}


def in_the_middle(shop, rollout, table, act):
    """Do *act* while the leader's look waits in its transaction, before it writes *table*."""
    with databases.session(shop.site.url) as sql:
        sql(f"BEGIN; LOCK TABLE {table} IN SHARE MODE")
        until(lambda: rollout.calls() or databases.somebody_waits(shop.site.url))
        assert rollout.exposed() == FIRST
        act()
        sql("ROLLBACK")


@pytest.mark.parametrize("table", [OFFERING, pytest.param(SETTLING, marks=pytest.mark.long)])
def test_a_server_killed_in_the_middle_of_a_batch_is_followed_by_the_other(shop, table):
    rollout = Rollout(shop, f"killed-{table}")
    rollout.until_exposed(FIRST)
    leader, other = shop.leader()
    if table == OFFERING:
        rollout.say()  # the first batch runs it: after its soak the next is offered
    in_the_middle(shop, rollout, table, lambda: leader.stop(signal.SIGKILL))
    until(lambda: shop.leads(other))
    if table == SETTLING:
        rollout.calls()
        assert rollout.exposed() == FIRST  # its batch has not said that it is well: nobody else is told
    rollout.until_done()
    rollout.check()
    leader.start()


@pytest.mark.long
def test_a_leader_that_was_stopped_is_followed_by_the_other_and_wakes_to_nothing(shop):
    """Its kernel keeps its sessions alive: the database ends them, because they say nothing."""
    rollout = Rollout(shop, "stopped")
    rollout.until_exposed(FIRST)
    rollout.say()
    leader, other = shop.leader()
    rollout.through = other  # whoever reaches the one that is stopped waits, and comes again
    in_the_middle(shop, rollout, OFFERING, lambda: leader.process.send_signal(signal.SIGSTOP))
    try:
        until(lambda: shop.leads(other), 120)
        rollout.until_exposed(DEVICES)
    finally:
        leader.process.send_signal(signal.SIGCONT)
    until(lambda: not shop.leads(leader) and duties_refused(leader))
    rollout.until_done()
    rollout.check()
    assert shop.leads(other)


def duties_refused(server):
    page = replicas.directly(server, "/metrics").body.decode()
    return 'casemate_fleet_refusals_total{listener="duty"' in page
