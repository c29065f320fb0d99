"""The steps of `casemate fleet demo` that roll releases out: to 200 simulated devices, and to a real one among them."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casemate.cli import update_tour
from casemate.cli.fleet_crowd import Crowd
from casemate.cli.tour import Outcome
from casemate.cli.update_tour import UpdateTour

if TYPE_CHECKING:
    from casemate.cli.fleet_stage import FleetTour

DEVICES: Final = 200
REAL: Final = "kiosk-1"
GOOD, BAD = 1, 2
BAD_RATE: Final = 0.6
_QUICK: Final = ("--soak", "4s", "--patience", "20s", "--install", "90s", "--come", "120s", "--control", "0.05")
_WHOM: Final = ("--group", "shops")  # the tills are cut off, wiped or bound to what they have proven
_WITHIN: Final = 300.0


class Stage:
    """What these steps share: the crowd, the release host with its real device, and two people's tokens."""

    def __init__(self, tour: FleetTour) -> None:
        """Make everything anew, below the tour's own directory."""
        self.tour = tour
        (tour.scratch / "kiosk").mkdir()
        self.kiosk = UpdateTour(tour.scratch / "kiosk")
        self.kiosk.environ["CASEMATE_UPDATE_ALLOW_HTTP"] = "true"
        self.kiosk.enter = tour.networks[0].enter if tour.networks else []
        self.kiosk.url = tour.releases_url
        self.crowd = Crowd(tour.scratch / "crowd", DEVICES, (tour.directory / "ca" / "root.pem").read_bytes())
        self.tokens = {
            name: str(tour.verb("api-token", "create", name, "--role", role)["token"])
            for name, role in (("ann", "release-manager"), ("bob", "security-officer"), ("joe", "operator"))
        }
        self.rollouts: list[str] = []

    @property
    def public(self) -> Path:
        """What the web server serves."""
        return self.kiosk.repository / "public"

    def api(self, who: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the people's API as *who*.

        Raises:
            RuntimeError: it refused.

        """
        host, port = self.tour.listening("people")
        context = ssl.create_default_context(cafile=str(self.tour.directory / "ca" / "root.pem"))
        connection = http.client.HTTPSConnection(host, port, timeout=30, context=context)
        try:
            headers = {"Authorization": f"Bearer {self.tokens[who]}", "Content-Type": "application/json"}
            connection.request(method, f"/api/v1{path}", json.dumps(body).encode() if body else None, headers)
            answer = connection.getresponse()
            found: dict[str, Any] = json.loads(answer.read() or b"{}")
        finally:
            connection.close()
        if answer.status >= 400:  # noqa: PLR2004 - refused
            raise RuntimeError(f"{method} {path}: {answer.status} {found.get('title')}")
        return found

    def close(self) -> None:
        """Stop everything that was started."""
        self.crowd.stop()
        self.kiosk.stop()

    def roll_out(self) -> dict[str, Any]:
        """Roll out what the channel offers now; returns the rollout when it has ended or stopped."""
        self.tour.verb("release", "import", str(self.kiosk.repository))
        name = str(self.tour.verb("rollout", "create", "stable", *_WHOM, *_QUICK)["id"])
        self.rollouts.append(name)
        for who, verb in (("bob", "approve"), ("ann", "start")):
            self.api(who, "POST", f"/rollouts/{name}/{verb}", {"why": "the demo"})
        end = time.monotonic() + _WITHIN
        while (found := self.api("ann", "GET", f"/rollouts/{name}"))["state"] == "running":
            if time.monotonic() > end:
                raise RuntimeError(f"it is still running: {found['why']}")
            time.sleep(0.5)
        return found


def join(tour: FleetTour) -> Outcome:
    """Enrol the crowd, and a real device beside it; both check in."""
    stage = tour.rollouts = Stage(tour)
    began = time.monotonic()
    tokens = [
        str(stage.api("joe", "POST", "/enrolments/tokens", {"asset": each.name, "group": "shops"})["token"])
        for each in stage.crowd.devices
    ]
    stage.crowd.join(str(tour.said["enrol"]), str(tour.said["devices"]), tokens)
    stage.crowd.start()
    took = time.monotonic() - began
    token = tour.verb("token", "create", "--asset", REAL, "--group", "shops")["token"]
    paper = stage.kiosk.scratch / "token"
    paper.write_text(token)
    stage.kiosk.json("device", "enrol", tour.enrol_url, "--token-file", str(paper))
    stage.kiosk.start()
    page = stage.api("ann", "GET", "/devices?group=shops&limit=500")["devices"]
    detail = f"{DEVICES} simulated devices in {took:.1f} s, over mTLS, and {REAL}, which is real"
    return Outcome(len(page) == DEVICES + 1, detail)


def publish(tour: FleetTour) -> Outcome:
    """Make a release repository; the fleet's server reads it, and from then on directs its devices."""
    stage: Stage = tour.rollouts
    kiosk = stage.kiosk
    update_tour.make(kiosk, ((GOOD, "[a-z]"), (BAD, "no model says this")))
    recipient = kiosk.json("device", "key", "show")["recipient"]
    for version in (GOOD, BAD):
        kiosk.json("release", "grant", update_tour.LABEL.format(version), "--to", recipient)
    root = str(stage.public / "metadata" / "1.root.json")
    kiosk.json("update", "trust", root, "--url", kiosk.url)
    kiosk.offer(GOOD)
    found = tour.verb("release", "import", str(kiosk.repository), "--root", root)["releases"]
    end = time.monotonic() + _WITHIN
    while (told := kiosk.json("update", "check", code=None))["available"]:  # it hears of it at its next check-in
        if time.monotonic() > end:
            return Outcome(ok=False, detail="the real device would still take it by itself")
        time.sleep(1)
    detail = f"{len(found)} generation, verified from its root; by itself {REAL} takes nothing any more"
    return Outcome(not told["available"] and found[0]["usable"], detail)


def good(tour: FleetTour) -> Outcome:
    """Roll a good release out: twenty devices, then everybody."""
    stage: Stage = tour.rollouts
    found = stage.roll_out()
    real = stage.kiosk.wait_for("GOOD")
    counts = f"{found['good']} of {found['offered']} are good, {found['failed'] + found['silent']} failed"
    batches = ", then ".join(str(sum(v for k, v in each.items() if k != "batch")) for each in found["batches"])
    fine = found["state"] == "done" and found["good"] == found["offered"] > DEVICES // 2
    return Outcome(fine and real["good"] == 1, f"{batches} devices; {counts}; {REAL} runs generation {real['good']}")


def bad(tour: FleetTour) -> Outcome:
    """Offer a bad one: it stops at the canary, and nobody else is told to take it."""
    stage: Stage = tour.rollouts
    stage.kiosk.offer(BAD)
    known = {each["content"] for each in stage.api("ann", "GET", "/releases")["items"]}
    listed = tour.verb("release", "import", str(stage.kiosk.repository))["releases"]
    stage.crowd.fates = {each["content"]: BAD_RATE for each in listed if each["content"] not in known}
    found = stage.roll_out()
    detail = f"{found['state']}: {found['why']}; {found['offered']} of {DEVICES + 1} devices met it"
    return Outcome(found["state"] == "paused" and found["offered"] <= 20, detail)  # noqa: PLR2004 - the first batch
