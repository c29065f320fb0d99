"""A rollout over the wire: a real server and release repository, devices that speak mTLS and answer as they like."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from casemate.errors import UntrustedDataError
from casemate.formats import director
from casemate.release import setup
from support import published
from support.fleet import Device, running, until
from support.release import FixedClock, keystore

QUICK = ("--soak", "1s", "--patience", "5m", "--install", "5m", "--come", "5m", "--control", "0", "--first", "2")
"""Nobody here is silent, however slow the machine: what silence means is shown where a test moves the clock."""


class Site:
    def __init__(self, server, repository, directory):
        self.server, self.repository, self.directory = server, repository, directory
        self.tokens = {
            name: server.cli("api-token", "create", name, "--role", role)["token"]
            for name, role in (
                ("ann", "release-manager"),
                ("bob", "security-officer"),
                ("eve", "viewer"),
                ("sam", "auditor"),
            )
        }
        charter = json.loads((server.directory / "ca" / "charter.json").read_bytes())
        self.charter = json.loads(base64.b64decode(charter["payload"]))

    def api(self, who, method, path, body=None, **headers):
        found = {"Authorization": f"Bearer {self.tokens[who]}", "content-type": "application/json"} | headers
        raw = None if body is None else json.dumps(body).encode()
        return self.server.ask("people", method, f"/api/v1{path}", raw, found)

    def bring_in(self):
        return self.server.cli("release", "import", str(self.repository.directory))["releases"]

    def pick(self, device, held=0, **more):
        """Check in and return the pick that came, proven as the device would."""
        answer = device.checkin(pick=held, **more)
        assert answer.status == 200, answer.body
        raw = answer.json().get("pick")
        if raw is None:
            return None
        return director.verify_pick(
            base64.b64decode(raw),
            public=base64.b64decode(self.charter["director"]),
            fleet=self.charter["fleet"],
            device=device.id,
            after=held,
            earliest=0,
        ).pick

    def word(self, device, content, outcome="good", *, by=None, **more):
        word = director.Word(1, self.charter["fleet"], device.id, content, outcome, 1, **more)
        raw = director.sign_word(director.encode_word(word), (by or device).key)
        return device.ask("POST", "/device/v1/generation", {"word": base64.b64encode(raw).decode()})

    def status(self, name):
        return self.server.cli("rollout", "status", name)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rollout")
    repository = published.create(directory / "repository")
    published.put(repository, directory / "made", "1.0.0")
    with running(directory / "fleet") as server:
        root = repository.metadata / "1.root.json"
        server.cli("release", "import", str(repository.directory), "--root", str(root))
        yield Site(server, repository, directory)


def devices(site, group, count):
    """Enrol *count* devices and have the server hear of them: a first look that finds fewer has a smaller batch."""
    made = [
        Device(site.server, site.directory, f"{group}-{number}").enrol(None, "--group", group)
        for number in range(count)
    ]
    for one in made:
        assert one.checkin().status == 200
    site.server.has_heard_of(*(one.asset for one in made))
    return made


def started(site, group, *more):
    given = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | dict(zip(more[::2], more[1::2], strict=True))
    words = [part for pair in given.items() for part in pair]
    name = site.server.cli("rollout", "create", "stable", "--group", group, *words)["id"]
    for who, verb in (("bob", "approve"), ("ann", "start")):
        answer = site.api(who, "POST", f"/rollouts/{name}/{verb}", {})
        assert answer.status == 200, answer.body
    return name


def test_the_page_about_rollouts_is_followed(site):
    """Type what docs/rollouts.md says; where it says that somebody else approves, somebody else does."""
    page = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("casemate fleet r")]  # release, rollout
    typed = [line.split()[2:] for line in lines]
    place, root = str(site.repository.directory), str(site.repository.metadata / "1.root.json")
    named = {"https://releases.example.org": place, "1.root.json": root}
    seen = []
    for words in typed:
        given = [named.get(word, word) for word in words]
        refused = {"approve": 4, "abort": 11}.get(given[1], 0)  # its author; nothing to go back to
        answer = site.server.cli(*given, expect=refused)
        if given[1] == "create":
            named["ROLLOUT"] = answer["id"]
        elif given[1] == "approve":
            assert site.api("bob", "POST", f"/rollouts/{named['ROLLOUT']}/approve", {}).status == 200
        seen.append(answer.get("state", ""))
    assert [each for each in seen if each] == ["draft", "running", "running", "paused", "running"]
    assert site.server.cli("rollout", "abort", named["ROLLOUT"], "--yes")["state"] == "aborted"


def test_a_release_is_directed_to_two_devices_then_to_all_and_each_step_is_signed_for_one_device(site):
    shop = devices(site, "shop", 4)
    first = {device.asset: until(lambda device=device: site.pick(device), 20) for device in shop}
    assert {pick.action for pick in first.values()} == {"keep"}  # from the first import on nobody takes by himself
    assert all(site.pick(device, first[device.asset].sequence) is None for device in shop)
    name = started(site, "shop")

    def taking():
        return [one for one in shop if (found := site.pick(one, 1)) and found.action == "take"]

    offered = until(lambda: len(found := taking()) >= 2 and found)  # one may have heard of it before the other
    assert len(offered) == 2
    pick = site.pick(offered[0], 1)
    listed = site.bring_in()[0]
    assert (pick.choice.channel, pick.choice.content) == ("stable", listed["content"])
    raw = base64.b64decode(offered[0].checkin(pick=1).json()["pick"])
    with pytest.raises(UntrustedDataError) as other:
        director.verify_pick(
            raw,
            public=base64.b64decode(site.charter["director"]),
            fleet=site.charter["fleet"],
            device=offered[1].id,
            after=0,
            earliest=0,
        )
    assert other.value.check == "pick-device"
    content = pick.choice.content
    for device in offered:
        assert site.word(device, content, hardware="pi5", first_token_ms=12.0).status == 204
    rest = [device for device in shop if device not in offered]

    def everybody_calls():
        for device in shop:
            found = site.pick(device, 1, generation=content if device in offered else "")
            if device in rest and found and found.action == "take":
                assert site.word(device, content).status == 204
                offered.append(device)
        return site.status(name)["state"] == "done"

    until(everybody_calls, 30)
    found = site.status(name)
    assert {key: found[key] for key in ("state", "offered", "good", "failed", "silent")} == {
        "state": "done",
        "offered": 4,
        "good": 4,
        "failed": 0,
        "silent": 0,
    }
    assert set(found) == {"schema", "state", "batch", "offered", "good", "failed", "silent", "verdict", "why"}
    late = devices(site, "shop", 5)[4]  # joins when all is over: it is given the same
    assert site.pick(late).choice.content == content


def test_a_bad_release_stops_and_those_in_the_middle_are_recalled(site):
    depot = devices(site, "depot", 8)
    name = started(site, "depot", "--first", "8")

    def offered():
        return [one for one in depot if (found := site.pick(one, 1)) and found.action == "take"]

    until(lambda: len(offered()) == 8, 20)
    pick = site.pick(depot[0], 1)
    for device in depot[:5]:
        assert site.word(device, pick.choice.content, "failed", why="the smoke prompt").status == 204
    until(lambda: site.status(name)["state"] == "paused")
    assert re.search(r"[1-5] of 8 devices failed", site.status(name)["why"])  # it may look between two words
    until(lambda: site.status(name)["failed"] == 5)
    recalled = until(lambda: (found := site.pick(depot[7], pick.sequence)) and found, 10)
    assert recalled.action == "keep"
    for verb, body in (("resume", {}), ("abort", {"roll_back": True})):
        refused = site.api("ann", "POST", f"/rollouts/{name}/{verb}", body)
        assert (refused.status, "passkey" in refused.json()["title"]) == (403, True), "the numbers said stop"
    assert site.status(name)["state"] == "paused"
    audit = site.api("sam", "GET", "/audit?limit=200").json()["items"]
    stops = [each for each in audit if each["action"] == "rollout.stop"]
    assert stops[0]["actor"] == "steward"


def test_who_may_what_and_two_at_once(site):
    draft = site.api("ann", "POST", "/rollouts", {"release": "stable", "group": "nobody"})
    assert draft.status == 201
    name, tag = draft.json()["id"], draft.headers["etag"]
    assert site.api("eve", "POST", f"/rollouts/{name}/approve", {}).status == 401
    assert site.api("ann", "POST", f"/rollouts/{name}/approve", {}).status == 401  # her own
    assert site.api("bob", "POST", "/rollouts", {"release": "stable"}).status == 401
    assert site.api("bob", "POST", f"/rollouts/{name}/approve", {}, **{"If-Match": tag}).status == 200
    for strange, status in (('"nan"', 400), ("inf", 400), ('"2.5"', 409)):
        assert site.api("ann", "POST", f"/rollouts/{name}/start", {}, **{"If-Match": strange}).status == status
    late = site.api("ann", "POST", f"/rollouts/{name}/start", {}, **{"If-Match": tag})
    assert (late.status, late.json()["type"]) == (409, "urn:casemate:conflict")
    assert site.api("bob", "POST", f"/rollouts/{name}/approve", {}).status == 409  # it is approved
    everybody = site.api("ann", "POST", "/rollouts", {"release": "stable"}).json()["id"]
    assert site.api("bob", "POST", f"/rollouts/{everybody}/approve", {}).status == 200
    refused = site.api("ann", "POST", f"/rollouts/{everybody}/start", {})
    assert (refused.status, "passkey" in refused.json()["title"]) == (403, True), "no token gives it to every device"
    assert site.api("bob", "POST", f"/rollouts/{everybody}/abort", {}).status == 200, "and any ends it"
    key = {"Idempotency-Key": "once"}
    body = {"release": "stable", "group": "nowhere"}
    twice = [site.api("ann", "POST", "/rollouts", body, **key).json()["id"] for _ in range(2)]
    assert twice[0] == twice[1]
    assert site.api("ann", "POST", "/rollouts", {"release": "stable", "terms": {"soak": -1}}).status == 400
    assert site.api("ann", "POST", "/rollouts", {"release": "nightly"}).status == 404
    assert [each["id"] for each in site.api("eve", "GET", "/rollouts").json()["items"]].count(name) == 1
    assert site.api("eve", "GET", "/releases").json()["items"][0]["usable"]


def test_a_word_counts_only_when_its_own_device_signed_it(site):
    one, other = devices(site, "words", 2)
    content = "a" * 64
    forged = site.word(one, content, by=other)
    assert (forged.status, forged.json()["check"]) == (400, "envelope-signature")
    foreign = director.Word(1, site.charter["fleet"], other.id, content, "good", 1)
    raw = director.sign_word(director.encode_word(foreign), one.key)
    answer = one.ask("POST", "/device/v1/generation", {"word": base64.b64encode(raw).decode()})
    assert (answer.status, answer.json()["check"]) == (400, "word-device")


def test_a_yanked_release_and_an_older_repository_are_refused(site):
    repository = published.copy(site.repository.directory, site.directory / "older")
    published.put(site.repository, site.directory / "made", "2.0.0")
    states = {each["generation"]: each["state"] for each in site.bring_in()}
    assert states == {2: "offered", 1: "superseded"}
    refused = site.server.cli("release", "import", str(repository.directory), expect=10)
    assert refused["error"]["check"] == "release-metadata"  # the same root, an older timestamp


def test_an_expired_repository_is_refused(site, tmp_path):
    old = setup.create(tmp_path / "old", keystore(tmp_path / "old"), FixedClock(1_000_000_000.0))
    root = str(old.metadata / "1.root.json")
    found = site.server.cli("release", "import", str(old.directory), "--root", root, expect=10)
    assert found["error"]["check"] == "release-metadata"
