"""A gated model that a rollout brings: taken by the device that proves itself, refused and said why by the other."""

from __future__ import annotations

import json
import time

import pytest

from support import mirror, updates
from support.device import cli, environment, running
from support.fleet import running as fleet
from support.fleet import until
from support.swtpm import measured_tpm, needs_swtpm
from support.updates import Follower, ReleaseHost

pytestmark = [needs_swtpm, pytest.mark.timeout(900)]
MODEL, WITHIN = "saffron", 150
ASKS = ("--soak", "5s", "--patience", "600s", "--install", "600s", "--come", "600s", "--control", "0", "--first", "2")


@pytest.fixture
def chip(tmp_path):
    with measured_tpm(tmp_path / "tpm") as made:
        yield made


def answers(device):
    """Say whether it answers; its limit of requests is for those who wait a little."""
    if device.prompt(MODEL) == 200:
        return True
    time.sleep(1)
    return False


def served(device):
    return next((model for model in device.refresh()["models"] if model["name"] == MODEL), {})


class Two(Follower):
    """A device that takes updates, with what its environment has beside."""

    def __init__(self, home, extra=None):
        super().__init__(home)
        self.extra = extra

    @property
    def environ(self):
        return environment(self.home, self.extra)


@pytest.mark.long
def test_a_gated_release_is_taken_under_a_lease_or_not_at_all(chip, tmp_path):
    host = ReleaseHost(tmp_path / "host")
    host.init()
    proven = Two(tmp_path / "till-7" / "home", {"CASEMATE_KEYSTORE_TPM": chip.tcti})
    unproven = Two(tmp_path / "till-8" / "home")
    author, policy, signed = (str(tmp_path / name) for name in ("author", "policy", "signed"))
    with fleet(tmp_path / "fleet") as server, mirror.serving(host.public) as web:

        def learn():
            server.cli("policy", "learn", "till-7", "--out", policy)
            cli(proven.environ, "fleet", "policy", "sign", policy, "--key-file", author, "--out", signed)
            server.cli("policy", "add", signed)

        def learn_what_it_serves():
            server.cli("device", "attest", "till-7")
            until(lambda: (proven_status() or {}).get("attestation") in ("warning", "contraindicated"), WITHIN)
            learn()

        def proven_status():
            return json.loads(cli(proven.environ, "status", "--json", check=False).stdout).get("fleet")

        def roll_out(group):
            name = server.cli("rollout", "create", "stable", "--group", group, *ASKS)["id"]
            api("bob", "POST", f"{name}/approve", b"{}")
            api("ann", "POST", f"{name}/start", b"{}")
            return name

        def why_not(name):
            return [each["why"] for each in api("ann", "GET", name)["failures"]]

        def api(who, method, path, body=None):
            headers = {"Authorization": f"Bearer {tokens[who]}", "content-type": "application/json"}
            answer = server.ask("people", method, f"/api/v1/rollouts/{path}", body, headers)
            assert answer.status == 200, answer.body
            return answer.json()

        tokens = {
            name: server.cli("api-token", "create", name, "--role", role)["token"]
            for name, role in (("ann", "release-manager"), ("bob", "security-officer"))
        }
        # the model, gated; its first release names what the fleet says
        recipient = server.cli("model", "gate", MODEL, "--min-assurance", "L2")["recipient"]
        gate = f'gate = {{ model = "{MODEL}", min_assurance = "L2", recipient = "{recipient}" }}'
        plain = updates.MODEL.read_bytes()
        host.publish(host.build("2.0", security=2, files={"saffron.gguf": plain}, more=gate))
        host.publish(host.build("3.0", security=3, files={"saffron.gguf": updates.other(plain, 0)}, more=gate))
        host.offer("model/saffron/2.0")
        server.cli("release", "import", str(host.repository), "--root", str(host.trust))
        for device, asset, group in ((proven, "till-7", "lab"), (unproven, "till-8", "shop")):
            device.home.parent.mkdir()
            paper = device.home.parent / "token"
            paper.write_text(server.token(asset, "--group", group))
            cli(device.environ, "device", "enrol", server.addresses["enrol"], "--token-file", str(paper))
            device.recipient  # noqa: B018 - makes its keystore
            device.follow(host, web.url)
        public = cli(proven.environ, "fleet", "policy", "author", author).stdout.strip()
        server.cli("policy", "trust", public)
        with running(proven.home, environ=proven.extra) as seven, running(unproven.home) as eight:
            # neither proves itself yet: both say why, and nothing is on their disks
            until(lambda: all(server.device(asset)["last_seen"] for asset in ("till-7", "till-8")), WITHIN)
            for group, words in (("lab", "the newest attestation is not affirming"), ("shop", "has no TPM")):
                name = roll_out(group)
                (why,) = until(lambda name=name: why_not(name), WITHIN)
                assert words in why
            for device in (proven, unproven):
                status = device.status
                assert (status["state"], status["good"], status["denied"]) == ("FETCHING", None, []), status
                assert "the fleet gives no key of 'saffron'" in status["last_error"], status
                assert not list((device.home / "models").glob("saffron.g*"))
            # by hand neither
            assert "no TPM" in unproven.update("apply", exit_code=11)["error"]["message"]
            learn()  # from here on the fleet knows what till-7 runs

            def taken():  # by itself it would ask again in a while
                cli(proven.environ, "update", "apply", "--json", check=False)
                return proven.status["state"] == "GOOD"

            until(taken, WITHIN)
            model = until(lambda: (found := served(seven)).get("container") == "saffron.g1" and found, WITHIN)
            assert model["lease"]["runs"]
            until(lambda: answers(seven), WITHIN)
            assert server.device("till-7")["state"] == "enrolled"
            listed = json.loads(cli(proven.environ, "model", "list", "--json").stdout)["models"]
            gates = {row["name"]: row.get("gate", {}).get("min_assurance") for row in listed}
            assert gates["saffron.g1"] == "L2"
            assert seven.cli("model", "verify", "saffron.g1", check=False).returncode == 11  # this home's keys: no
            assert plain[:4096] not in (proven.home / "models" / "saffron.g1.cmodel").read_bytes()
            # a newer one, as a difference from the gated container; then back again
            learn_what_it_serves()
            host.offer("model/saffron/3.0")
            tar = tmp_path / "export.tar"
            host.run("export", host.repository, tar)
            proven.update("import", tar)
            applied = proven.update("apply")
            assert (applied["state"], applied["generation"]) == ("GOOD", 2)
            assert served(seven)["container"] == "saffron.g2"
            until(lambda: answers(seven), WITHIN)
            proven.update("rollback", "--yes")
            until(lambda: served(seven).get("container") == "saffron.g1" and served(seven)["state"] == "ready", WITHIN)
            until(lambda: answers(seven), WITHIN)
            learn_what_it_serves()
            # quarantine stops it, release lets it ask again
            server.cli("device", "quarantine", "till-7")
            until(lambda: served(seven)["state"] == "quarantined", WITHIN)
            assert seven.prompt(MODEL) == 503
            assert not list((proven.home / "attester" / "leases").iterdir())
            server.cli("device", "release", "till-7")
            until(lambda: served(seven)["state"] == "ready", WITHIN)
            until(lambda: answers(seven), WITHIN)
            assert eight.refresh()["models"][0]["name"] == MODEL  # what it had runs on
            assert "container" not in eight.status["models"][0]
        with running(proven.home, environ=proven.extra) as seven:  # and after a start, by what is on its disk
            assert served(seven)["container"] == "saffron.g1"
            until(lambda: answers(seven), WITHIN)
