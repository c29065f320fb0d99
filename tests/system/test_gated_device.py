"""A gated model on a whole device: added, answered with, stopped when its lease ends, and back when it is affirmed."""

from __future__ import annotations

import json
import sqlite3

import pytest

from support.device import cli, environment, running
from support.fleet import running as fleet
from support.fleet import until
from support.swtpm import measured_tpm, needs_swtpm
from support.updates import MODEL as SAFFRON

pytestmark = [needs_swtpm, pytest.mark.timeout(400)]
MODEL, LEASE, WITHIN = "saffron-gated", 20, 90


@pytest.fixture
def chip(tmp_path):
    with measured_tpm(tmp_path / "tpm") as made:
        yield made


def shorten(server):
    """Make the lease shorter than anybody can order: a test has no minutes."""
    with sqlite3.connect(next(server.directory.glob("*.db"))) as database:
        database.execute("UPDATE model_key SET lease_s = ?", (LEASE,))


def served(device):
    return next(model for model in device.refresh()["models"] if model["name"] == MODEL)


def proven(server):
    """Return the models that the device's newest evidence proves."""
    events = server.cli("policy", "learn", "till-7")["policy"]["events"]
    return {event["name"] for event in events if event["kind"] == "model"}


@pytest.mark.long
def test_a_gated_model_runs_for_its_lease_and_stops_with_it(chip, tmp_path):
    home, extra = tmp_path / "d" / "home", {"CASEMATE_KEYSTORE_TPM": chip.tcti}
    environ = environment(home, extra)
    author, policy, signed = (str(tmp_path / name) for name in ("author", "policy", "signed"))
    with fleet(tmp_path / "fleet") as server:

        def learn(*more):
            server.cli("policy", "learn", "till-7", "--out", policy, *more)
            cli(environ, "fleet", "policy", "sign", policy, "--key-file", author, "--out", signed)
            server.cli("policy", "add", signed)

        (tmp_path / "token").write_text(server.token("till-7"))
        cli(environ, "device", "enrol", server.addresses["enrol"], "--token-file", str(tmp_path / "token"))
        public = cli(environ, "fleet", "policy", "author", author).stdout.strip()
        server.cli("policy", "trust", public)
        server.cli("model", "gate", MODEL, "--min-assurance", "L2")
        with running(home, environ=extra) as device:
            until(lambda: (device.refresh()["fleet"] or {}).get("attestation"), WITHIN)
            added = ("model", "add", str(SAFFRON), "--name", MODEL, "--min-assurance")
            refused = device.cli(*added, "L2", check=False)
            assert refused.returncode == 11, refused  # nobody has signed a policy
            learn()
            assert device.cli(*added, "L3", check=False).returncode == 11  # the fleet gives this key to L2 already
            made = json.loads(device.cli(*added, "L2", "--json").stdout)
            assert server.cli("model", "gate", MODEL, "--min-assurance", "L2")["policies_without"] == ["default"]
            learn("--model", f"{MODEL}={made['digest']}")  # what it serves is measured, and is known before
        with running(home, "--model", MODEL, environ=extra) as device:
            server.cli("device", "attest", "till-7")
            until(lambda: MODEL in proven(server), WITHIN)
            assert server.device("till-7")["assurance"] == "L2", "affirmed, with the model served"
        shorten(server)
        listed = json.loads(cli(environ, "model", "list", "--json").stdout)["models"]
        assert [model.get("gate", {}).get("min_assurance") for model in listed if model["name"] == MODEL] == ["L2"]
        for path in (home / "attester" / "leases").iterdir():
            path.unlink()  # the long lease of its making
        with running(home, "--model", MODEL, environ=extra) as device:
            assert device.prompt(MODEL) == 200
            device.kill("engine")  # comes back with the key that the TPM keeps
            until(lambda: served(device)["failures"] >= 1 and served(device)["state"] == "ready", WITHIN)
            server.cli("model", "gate", MODEL, "--min-assurance", "L2", "--licence-until", "2020-01-01")
            stopped = until(lambda: (found := served(device))["state"] == "stopped" and found, WITHIN)
            assert stopped["pid"] is None
            assert not stopped["lease"]["runs"]
            for words in ("its lease ended at", "has not affirmed this device since", "fleet model grants"):
                assert words in stopped["reason"], stopped
            assert device.prompt(MODEL) == 503
            until(lambda: "the licence has ended" in served(device)["reason"], WITHIN)
            assert device.events("lease_ended")
            server.cli("model", "gate", MODEL, "--min-assurance", "L2")
            shorten(server)
            until(lambda: served(device)["state"] == "ready", WITHIN)
            assert device.prompt(MODEL) == 200
            server.cli("device", "quarantine", "till-7")
            until(lambda: served(device)["state"] == "quarantined", WITHIN)
            until(lambda: not list((home / "attester" / "leases").iterdir()), WITHIN)
            server.cli("device", "release", "till-7")
            until(lambda: served(device)["state"] == "ready", WITHIN)
