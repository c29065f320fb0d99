"""Coming back to a fleet with what was stolen: an old key or certificate, a disk without its TPM, an old answer."""

from __future__ import annotations

import base64
import itertools
import ssl

import pytest

from casemate.crypto import authority, client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError
from casemate.formats import fleet_api, lease
from casemate.formats.keystore import key_id
from support.fleet import Device, running, until
from support.returning import ask_back, post, put_away, take
from support.swtpm import needs_swtpm, software_tpm
from support.tpm_device import TpmDevice

_names = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("return") / "fleet") as started:
        yield started


@pytest.fixture
def device(server, tmp_path):
    found = Device(server, tmp_path, f"unit-{next(_names)}").enrol()
    assert found.checkin().status == 200
    put_away(server, found)
    return found


def actions(server, device):
    return [entry["action"] for entry in server.device(device.id)["history"]]


def test_an_old_key_brings_nothing_back_without_a_persons_click_and_once_with_it(server, device):
    with pytest.raises((ssl.SSLError, OSError)):
        device.checkin()
    assert [ask_back(device).status for _ in range(3)] == [202, 202, 202]
    assert actions(server, device).count("device.return.asks") == 1
    assert server.device(device.id)["returns"]["approved"] is None
    thief = Device(server, device.identity.parent / "thief", device.asset)
    thief.certificate = device.certificate
    assert ask_back(thief).status == 401, "another key"
    server.cli("device", "approve", device.id)
    assert ask_back(thief).status == 401, "the click was for the key that asked"
    before, name = server.device(device.id), device.id
    take(device, ask_back(device))  # the control: who has the key, and the yes, is back
    assert device.id == name
    until(lambda: device.checkin().status == 200)
    after = server.device(name)
    assert (after["asset"], after["state"], after["created"]) == (before["asset"], "enrolled", before["created"])
    put_away(server, device)
    assert ask_back(device).status == 202, "one yes is for one return"


def test_a_yes_needs_somebody_who_asks(server, device):
    server.cli("device", "approve", device.id, expect=11)
    ask_back(device)
    server.cli("device", "approve", device.id)


def test_a_device_that_is_out_is_refused_for_good_and_told_so(server, device, tmp_path):
    assert ask_back(device).status == 202
    server.cli("device", "revoke", device.id)
    refused = ask_back(device)
    assert (refused.status, refused.json()["title"]) == (403, "this device is revoked")
    server.cli("device", "approve", device.id, expect=11)
    replaced = Device(server, tmp_path / "r", f"unit-{next(_names)}").enrol()
    put_away(server, replaced)
    Device(server, tmp_path / "n", replaced.asset).enrol()
    assert (ask_back(replaced).status, ask_back(replaced).json()["title"]) == (403, "this device is replaced")
    server.cli("device", "approve", replaced.id, expect=11)


def test_a_quarantined_device_is_quarantined_when_it_is_back_and_obeys_no_lower_number(server, device):
    ask_back(device)
    server.cli("device", "quarantine", device.id)
    server.cli("device", "approve", device.id)
    take(device, ask_back(device))
    answer = until(lambda: (found := device.checkin()).status == 200 and found.json())
    assert server.device(device.id)["state"] == "quarantined"
    assert len(answer["commands"]) == 1, "its order still waits for it"
    assert (
        device.ask("POST", "/device/v1/keys/any/release", {"nonce": base64.b64encode(bytes(32)).decode()}).status == 403
    )


def test_a_lost_device_that_shows_up_is_let_in_only_to_be_wiped(server, device):
    server.cli("device", "wipe", device.id, "--yes")
    take(device, ask_back(device))
    answer = until(lambda: (found := device.checkin()).status == 200 and found.json())
    assert len(answer["commands"]) == 1
    assert device.ask("POST", "/device/v1/inventory", {"items": []}).status == 403
    assert device.answer(answer["commands"][0], keys_destroyed=True).status in {200, 204}
    assert server.device(device.id)["state"] == "wiped"
    put_away(server, device)
    assert ask_back(device).status == 403


def test_a_certificate_that_holds_is_renewed_elsewhere(server, tmp_path):
    device = Device(server, tmp_path, f"unit-{next(_names)}").enrol()
    assert ask_back(device).status == 409
    assert server.device(device.id)["returns"] is None


@pytest.mark.parametrize("body", [{}, {"device": "x", "serial": "", "csr": ""}, {"device": "till-1"}])
def test_what_is_no_question_is_refused(server, body):
    assert post(server, "return", body).status == 400


# --- with a TPM -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tpm_device(server, tmp_path):
    with software_tpm(tmp_path / "tpm") as chip:
        found = TpmDevice(server, tmp_path / "d", f"unit-{next(_names)}", chip).boot()
        found.join(server.token(found.asset))
        put_away(server, found)
        yield found


def claims(device):
    return {"device": device.id, "serial": authority.facts(device.certificate).serial}


def hello(device, owner):
    """Say, with the TPM of *device*, that this is *owner*."""
    certificate, ek, ak = device.keys()
    csr = client_certificate.make_request(owner.key)
    fields = {"ek_public": ek, "ak_public": ak, "csr": csr, "ek_certificate": certificate}
    body = {name: base64.b64encode(value).decode() for name, value in fields.items()}
    return csr, post(device.server, "tpm/challenge", {**body, **claims(owner)})


def proof(value):
    return {"secret": base64.b64encode(value).decode()}


@needs_swtpm
def test_a_stolen_disk_does_not_come_back_with_another_tpm_nor_with_its_key(server, tpm_device, tmp_path):
    with software_tpm(tmp_path / "thief") as other:
        thief = TpmDevice(server, tmp_path / "t", f"unit-{next(_names)}", other).boot()
        assert hello(thief, tpm_device)[1].status == 401
        thief.join(server.token(thief.asset))
        assert hello(thief, tpm_device)[1].status == 401, "a TPM of ours, of another device"
        server.cli("tpm", "allow", thief.ek_digest, "--asset", tpm_device.asset)
        assert hello(thief, tpm_device)[1].status == 401, "a listed one"
    refused = ask_back(tpm_device)
    assert (refused.status, "TPM" in refused.json()["title"]) == (403, True)
    server.cli("device", "approve", tpm_device.id, expect=11)
    csr, sealed = hello(tpm_device, tpm_device)  # the control: its own TPM brings it back, without anybody
    secret = tpm_device.activate(sealed.json())
    name = tpm_device.id
    take(tpm_device, post(server, "tpm/complete", proof(fleet_api.return_proof(secret, csr))))
    assert tpm_device.id == name
    until(lambda: tpm_device.checkin().status == 200)
    assert "device.return" in actions(server, tpm_device)


@needs_swtpm
def test_an_old_activation_is_no_use_again_nor_for_another_key(server, tpm_device):
    csr, sealed = hello(tpm_device, tpm_device)
    secret = tpm_device.activate(sealed.json())
    other = fleet_api.return_proof(secret, EcKey.generate().public.der())
    assert post(server, "tpm/complete", proof(other)).status == 401
    assert post(server, "tpm/complete", proof(secret)).status == 401, "the secret itself is no proof of a return"
    right = proof(fleet_api.return_proof(secret, csr))
    assert post(server, "tpm/complete", right).status == 200
    assert post(server, "tpm/complete", right).status == 401
    put_away(server, tpm_device)
    csr, sealed = hello(tpm_device, tpm_device)
    assert post(server, "tpm/complete", right).status == 401, "another question, the old answer"
    fresh = proof(fleet_api.return_proof(tpm_device.activate(sealed.json()), csr))
    server.cli("device", "revoke", tpm_device.id)
    assert post(server, "tpm/complete", fresh).status == 403, "it was revoked between question and answer"
    assert hello(tpm_device, tpm_device)[1].status == 403


def test_who_has_a_return_proven_learns_nothing_that_opens_a_models_key():
    """The link carries grants, and asks for proofs: the answer to a grant's credential must not open the grant."""
    nonce = b"n" * 32
    with Secret(b"t" * 32) as transport, Secret(b"m" * 32) as key:
        terms = lease.Terms(1, "shop", "till", "m", key_id(key), "L2", 60, nonce)
        grant = lease.make_grant(transport, key, terms)
        with lease.open_grant(transport, *grant, model="m", nonce=nonce)[1] as opened:
            assert opened.reveal() == b"m" * 32  # the control: the credential's secret does
    guess = Secret(fleet_api.return_proof(b"t" * 32, b"any request"))
    with guess, pytest.raises(UntrustedDataError, match="not taken"):
        lease.open_grant(guess, *grant, model="m", nonce=nonce)
