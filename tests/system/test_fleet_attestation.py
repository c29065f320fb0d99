"""A server, software TPMs, and everything between them: joining, judging, keys. On SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import json

import msgspec
import pytest
import sqlalchemy as sa

from casemate.cli.main import run
from casemate.crypto import client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.errors import NotAuthorisedError, PolicyDeniedError, UntrustedDataError
from casemate.fleet.home import FleetHome
from casemate.fleet.store import Store, tables
from casemate.formats.keystore import key_id
from support import databases
from support.evidence import event
from support.fleet import Device, Server, running, until
from support.swtpm import needs_swtpm, software_tpm
from support.tpm_device import FIRMWARE, STACK, TpmDevice

pytestmark = needs_swtpm
_names = itertools.count()
_NONCE = base64.b64encode(bytes(32)).decode()


@pytest.fixture(scope="module", params=databases.KINDS)
def server(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(f"attest-{request.param}")
    with running(directory / "fleet", database=databases.new(request.param, directory)) as started:
        started.cli("policy", "trust", offline("policy", "author", directory / "author")["public"])
        yield started


@pytest.fixture(scope="module")
def makers(tmp_path_factory):
    return tmp_path_factory.mktemp("maker") / "ca"


@pytest.fixture
def chip(server, makers, tmp_path):
    with software_tpm(tmp_path / "tpm", makers) as made:
        list_maker(server, made, tmp_path)
        yield made


@pytest.fixture(scope="module")
def known(server, makers, tmp_path_factory):
    """A device that joined with its TPM, and the policy that was learned from it and signed."""
    place = tmp_path_factory.mktemp("known")
    with software_tpm(place / "tpm", makers) as chip:
        list_maker(server, chip, place)
        device = fresh(server, chip, place)
        learn(server, device, place)
        yield device


@pytest.fixture
def device(known):
    """That device, just switched on."""
    return known.boot()


def list_maker(server, chip, place):
    issuer = place / "issuer.pem"
    issuer.write_bytes(chip.maker)
    server.cli("tpm", "maker", str(issuer), "--software")


def offline(*words):
    """Run a verb that needs no fleet: what a policy's author does at a desk."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run(["fleet", *map(str, words), "--json"]) == 0, out.getvalue()
    return json.loads(out.getvalue())


def fresh(server, chip, tmp_path):
    name = f"unit-{next(_names)}"
    found = TpmDevice(server, tmp_path / name, name, chip).boot()
    return found.join(server.token(name, "--group", f"group-{name}"))


def learn(server: Server, device: TpmDevice, tmp_path):
    assert device.attest()["status"] == "none"
    proposal, signed = tmp_path / "proposal.json", tmp_path / "signed"
    server.cli("policy", "learn", device.asset, "--out", str(proposal))
    offline("policy", "sign", proposal, "--key-file", server.directory.parent / "author", "--out", signed)
    server.cli("policy", "add", str(signed))
    return signed


def gated(server, **options):
    name = f"model-{next(_names)}"
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return name, server.cli("model", "gate", name, *words)["key"]


def last_grant(server):
    return server.cli("model", "grants")["grants"][0]


# --- joining ----------------------------------------------------------------------------------------------------------


def test_a_listed_tpm_joins_without_a_token_and_comes_back_with_its_tpm_alone(server, chip, tmp_path):
    device = TpmDevice(server, tmp_path / "d", f"unit-{next(_names)}", chip).boot()
    assert device.hello().status == 401
    server.cli("tpm", "allow", device.ek_digest, "--asset", device.asset)
    device.join()
    assert device.checkin().status == 200
    name, device.key = device.id, EcKey.generate()
    assert device.join().id == name
    assert device.checkin().status == 200


async def end_certificates(server, name):
    """Let the certificates of a device have ended long ago, as the records have it."""
    store, cert = Store(FleetHome(server.directory).settings().database), tables.device_cert
    async with store.write() as connection:
        await connection.execute(sa.update(cert).where(cert.c.device_id == name).values(not_after=1.0))
    await store.close()


def test_a_device_whose_certificate_has_ended_comes_back_with_its_tpm_and_its_used_token(server, chip, tmp_path):
    device = TpmDevice(server, tmp_path / "d", f"unit-{next(_names)}", chip).boot()
    used = server.token(device.asset)
    name = device.join(used).id
    asyncio.run(end_certificates(server, name))
    until(lambda: device.checkin().status == 401)
    device.key = EcKey.generate()
    assert server.enrol(used, client_certificate.make_request(device.key)).status == 401, "without the TPM: nothing"
    assert device.join(used).id == name
    assert device.checkin().status == 200


def test_a_maker_nobody_listed_makes_no_chip(server, tmp_path):
    with software_tpm(tmp_path / "tpm") as unlisted:
        device = fresh(server, unlisted, tmp_path)
        learn(server, device, tmp_path)
        found = device.attest()
    assert (found["status"], found["assurance"]) == ("affirming", "L2")


# --- judging ----------------------------------------------------------------------------------------------------------


def test_a_device_is_affirmed_by_a_policy_that_was_learned_read_and_signed(server, device):
    found = device.attest()
    assert (found["status"], found["assurance"]) == ("affirming", "L3")
    assert server.device(device.asset)["assurance"] == "L3"


def test_without_a_policy_for_its_group_a_device_is_not_affirmed_and_gets_no_key(server, chip, tmp_path):
    device = fresh(server, chip, tmp_path)
    found = device.attest()
    assert (found["status"], found["assurance"]) == ("none", "L0")
    model, _ = gated(server, min_assurance="L2")
    assert device.ask_key(model).status == 403
    assert "not affirming" in last_grant(server)["reason"]


def test_a_model_that_was_listed_before_it_is_served_is_no_warning(server, device, tmp_path):
    name, digest = f"model-{next(_names)}", "5" * 64
    assert server.cli("model", "gate", name)["policies_without"]
    serving = (*STACK, event("model", name, digest=digest))
    assert device.boot(serving).attest()["status"] == "warning"  # the control
    device.boot().attest()
    proposal, signed = tmp_path / "proposal.json", tmp_path / "signed"
    server.cli("policy", "learn", device.asset, "--model", name, expect=5)  # nobody said which file that is
    items = [{"kind": "model", "name": name, "version": name, "digest": digest}]
    assert device.ask("POST", "/device/v1/inventory", {"items": items}).status in {200, 204}
    learned = [
        server.cli("policy", "learn", device.asset, "--model", each) for each in (name, f"{name}=sha256:{digest}")
    ]
    assert learned[0]["policy"]["events"] == learned[1]["policy"]["events"]
    server.cli("policy", "learn", device.asset, "--model", f"{name}=sha256:12", expect=2)
    server.cli("policy", "learn", device.asset, "--model", name, "--out", str(proposal))
    offline("policy", "sign", proposal, "--key-file", server.directory.parent / "author", "--out", signed)
    server.cli("policy", "add", str(signed))
    assert device.boot(serving).attest()["status"] == "affirming"
    other = (*STACK, event("model", name, digest="6" * 64))
    assert device.boot(other).attest()["status"] == "contraindicated", "the name with another file"
    group = server.device(device.asset)["group"]
    assert group not in server.cli("model", "gate", name)["policies_without"]


def test_a_tampered_device_is_told_apart_and_comes_back_when_it_is_whole(server, device):
    assert device.boot((*STACK[:2], event("engine", digest="e" * 64))).attest()["status"] == "contraindicated"
    assert device.boot(firmware={**FIRMWARE, 7: b"x" * 32}).attest()["status"] == "contraindicated"
    assert device.boot((*STACK, event("model", "unheard-of"))).attest()["status"] == "warning"
    assert device.boot(STACK[:2]).attest()["status"] == "none"
    assert device.boot().attest()["status"] == "affirming"


def refused(device, given, check):
    """Judged, and judged bad: the nonce is spent and the result is kept."""
    answer = device.show(given)
    assert answer.status == 200, answer.body
    found = answer.json()
    assert (found["status"], found["assurance"]) == ("contraindicated", "L0")
    assert found["reasons"][0].startswith(f"boot: {check}: ")


def cut_short(given):
    return msgspec.structs.replace(given, log=given.log[:-1])


def test_a_device_without_a_tpm_cannot_be_attested(server, tmp_path):
    plain = Device(server, tmp_path, f"plain-{next(_names)}").enrol()
    assert plain.ask("POST", "/device/v1/attest/challenge", {}).status == 403


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 100_000, b'{"schema":1}', b"\xff\xfe"])
def test_what_is_not_evidence_is_refused(server, device, body):
    answer = server.ask("devices", "POST", "/device/v1/attest/evidence", body, identity=device.identity)
    assert answer.status == 400


# --- keys -------------------------------------------------------------------------------------------------------------


def test_an_affirmed_device_gets_the_key_and_only_its_tpm_opens_it(server, device, tmp_path, makers):
    model, key = gated(server, lease_hours=2)
    device.attest()
    answer = device.ask_key(model)
    assert answer.status == 200, answer.body
    sealed = answer.json()
    with software_tpm(tmp_path / "thief", makers) as other, pytest.raises(NotAuthorisedError):
        TpmDevice(server, tmp_path / "t", "x", other).activate(sealed)
    assert device.take_key(model, sealed) == sealed["lease_s"] == 7200
    with device.use_key(model) as leased:
        assert key_id(leased.secret) == leased.key == key == sealed["key"]
    with pytest.raises(PolicyDeniedError):
        device.take_key(model, sealed)
    device.ring.begin(model)
    with pytest.raises(UntrustedDataError) as caught:
        device.take_key(model, sealed)
    assert caught.value.check == "grant-nonce"
    grant = last_grant(server)
    assert (grant["granted"], grant["model"], grant["device_id"]) == (True, model, device.id)


def test_a_device_that_was_never_attested_gets_no_key(server, tmp_path):
    model, _ = gated(server)
    plain = Device(server, tmp_path, f"plain-{next(_names)}").enrol()
    assert plain.ask("POST", f"/device/v1/keys/{model}/release", {"nonce": _NONCE}).status == 403
    assert last_grant(server)["reason"] == "the device was never attested"


def test_a_bad_result_ends_a_good_one(server, device):
    model, _ = gated(server)
    device.attest()
    assert device.ask_key(model).status == 200
    refused(device, cut_short(device.evidence(device.challenge())), "log-replay")
    assert device.ask_key(model).status == 403
    device.attest()
    assert device.ask_key(model).status == 200


def test_a_quarantined_device_gets_no_key_and_that_is_written_down(server, device):
    model, _ = gated(server)
    device.attest()
    server.cli("device", "quarantine", device.asset)
    assert device.ask_key(model).status == 403
    assert last_grant(server)["reason"] == "the device is quarantined"
    server.cli("device", "release", device.asset)
    assert device.ask_key(model).status == 200


def test_the_licence_and_the_level_are_asked_for(server, device):
    device.attest()
    over, _ = gated(server, licence_until="2020-01-01")
    assert device.ask_key(over).status == 403
    assert last_grant(server)["reason"] == "the licence has ended"
    assert device.ask_key("no-such-model").status == 403
    assert device.ask_key("../", b"n" * 32).status in {403, 404}
    assert device.ask_key(over, b"short").status == 400


def test_every_answer_of_the_broker_is_in_the_audit_log(server, device):
    model, _ = gated(server)
    device.ask_key(model)
    device.attest()
    device.ask_key(model)
    rows = json.dumps(server.cli("model", "grants")["grants"])
    assert rows.count(model) == 2
