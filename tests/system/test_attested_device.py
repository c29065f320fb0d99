"""A whole device and a whole server: joined with a TPM, measured, attested, affirmed; by the commands people type."""

from __future__ import annotations

import pytest

from support.device import cli, environment, running
from support.fleet import running as fleet
from support.fleet import until
from support.swtpm import measured_tpm, needs_swtpm

pytestmark = [needs_swtpm, pytest.mark.timeout(300)]


@pytest.fixture
def chip(tmp_path):
    with measured_tpm(tmp_path / "tpm") as made:
        yield made


@pytest.mark.long
def test_a_device_joins_with_its_tpm_proves_what_it_runs_and_is_affirmed_once_a_person_signed(chip, tmp_path):
    home, extra = tmp_path / "d" / "home", {"CASEMATE_KEYSTORE_TPM": chip.tcti}
    environ, policy = environment(home, extra), tmp_path / "policy"
    with fleet(tmp_path / "fleet") as server:
        (tmp_path / "maker.pem").write_bytes(chip.maker)
        server.cli("tpm", "maker", str(tmp_path / "maker.pem"), "--software")
        (tmp_path / "token").write_text(server.token("till-7"))
        cli(environ, "device", "enrol", server.addresses["enrol"], "--token-file", str(tmp_path / "token"))
        with running(home, environ=extra):
            pass  # ready: its model is measured, too, whenever the fleet asks from here on
        with running(home, environ=extra) as device:
            judged = until(lambda: (device.refresh()["fleet"] or {}).get("attestation"), 90)
            assert judged == "none", device.status["fleet"]
        public = cli(environ, "fleet", "policy", "author", str(tmp_path / "author")).stdout.strip()
        server.cli("policy", "trust", public)
        server.cli("policy", "learn", "till-7", "--out", str(policy))
        signed = str(tmp_path / "signed")
        cli(environ, "fleet", "policy", "sign", str(policy), "--key-file", str(tmp_path / "author"), "--out", signed)
        server.cli("policy", "add", signed)
        with running(home, environ=extra) as device:
            judged = until(lambda: (device.refresh()["fleet"] or {}).get("attestation"), 90)
            assert judged == "affirming", device.status["fleet"]
            assert device.status["fleet"]["attested_assurance"] == "L3"
        assert server.device("till-7")["assurance"] == "L3"
