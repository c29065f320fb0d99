"""The fleet server as its users meet it: a process, curl, openssl, TLS. On SQLite and on PostgreSQL."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import socket
import subprocess
import time

import pytest

from casemate.crypto import authority, client_certificate, x509
from casemate.crypto.ecdsa import EcKey
from casemate.errors import UntrustedDataError
from casemate.formats import enrolment, envelope
from casemate.formats.fleet_api import Inventory, Item, canonical_inventory
from support import databases
from support.fleet import Device, Server, basic, checkin, exchange, running, until

REVOKED_WITHIN = 5.0  # the contract says one second; a loaded machine gets five


@pytest.fixture(scope="module", params=databases.KINDS)
def server(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(f"fleet-{request.param}")
    with running(directory / "fleet", database=databases.new(request.param, directory)) as started:
        yield started


@pytest.fixture
def device(server, tmp_path, request):
    return Device(server, tmp_path, f"asset-{hashlib.sha256(request.node.name.encode()).hexdigest()[:10]}").enrol()


def sh(script: str, **variables: object) -> str:
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", **{name: str(value) for name, value in variables.items()}},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


ENROL = r"""
cd "$DIR"
curl -sS --fail --cacert "$CA" "$ENROL/.well-known/est/cacerts" | openssl base64 -d \
  | openssl pkcs7 -inform DER -print_certs -out cas.pem
openssl ecparam -name prime256v1 -genkey -noout -out device.key
openssl req -new -key device.key -subj "/CN=EVIL" -outform DER | openssl base64 > device.csr
curl -sS --fail --cacert "$CA" -u "anything:$TOKEN" -H "Content-Type: application/pkcs10" --data-binary @device.csr \
  "$ENROL/.well-known/est/simpleenroll" | openssl base64 -d | openssl pkcs7 -inform DER -print_certs -out chain.pem
openssl x509 -in chain.pem -noout -subject -ext subjectAltName
openssl verify -CAfile "$CA" -untrusted cas.pem chain.pem
curl -sS --fail --cacert "$CA" --cert chain.pem --key device.key -H "Content-Type: application/json" \
  -d '{"state":"ok","agent":"curl","clock":1}' "$DEVICES/device/v1/checkin"
"""


def test_curl_and_openssl_are_enough_to_enrol_and_check_in(server, tmp_path):
    out = sh(
        ENROL,
        DIR=tmp_path,
        CA=server.ca,
        TOKEN=server.token("curl-1", "--group", "shops"),
        ENROL=server.addresses["enrol"],
        DEVICES=server.addresses["devices"],
    )
    assert "EVIL" not in out
    assert "chain.pem: OK" in out
    answer = json.loads(out.splitlines()[-1])
    assert answer["next_checkin_s"] > 0
    known = until(lambda: (found := server.device("curl-1"))["last_seen"] and found)
    assert f"urn:uuid:{known['id']}" in out
    assert (known["state"], known["group"], known["agent"], known["assurance"]) == ("enrolled", "shops", "curl", "L0")
    assert known["clock_skew"] < -1e9  # shown, and believed by nobody


def test_the_list_has_what_scripts_need(server, device):
    device.checkin()
    until(lambda: server.device(device.asset)["last_seen"])
    listed = server.cli("device", "list", "--asset", device.asset)["devices"]
    assert [each["id"] for each in listed] == [device.id]
    assert {"id", "asset", "state", "assurance", "last_seen", "certificate_expires"} <= set(listed[0])
    assert 6.9 * 86400 < listed[0]["certificate_expires"] - time.time() < 7.1 * 86400
    server.cli("device", "show", "nobody", expect=5)


def test_csrattrs_names_the_curves(server):
    attributes = base64.b64decode(server.get("enrol", "/.well-known/est/csrattrs").body)
    assert bytes.fromhex("2a8648ce3d030107") in attributes


def test_the_bundle_is_signed_by_the_root_the_token_names(server):
    token = enrolment.parse_token(server.token("bundle-1"))
    bundle = enrolment.parse_bundle(server.get("enrol", "/device/v1/enroll/bundle").body)
    certificates = client_certificate.of_pkcs7(base64.b64decode(server.get("enrol", "/.well-known/est/cacerts").body))
    root = next(each for each in certificates if each.sha256 == token.root_sha256)
    charter = enrolment.verify_charter(bundle.charter, root.public)
    assert bundle.devices == server.addresses["devices"]
    assert len(charter.charter.command) == 32
    with pytest.raises(UntrustedDataError):
        enrolment.verify_charter(bundle.charter, EcKey.generate().public)


def test_a_revoked_device_is_refused_everywhere_within_a_second(server, device):
    with device.stream() as stream, server.connection("devices", device.identity) as kept:
        assert stream.event() == "hello"
        body = json.dumps(checkin()).encode()
        assert exchange(kept, "POST", "/device/v1/checkin", body).status == 200
        server.cli("device", "revoke", device.asset)
        until(lambda: exchange(kept, "POST", "/device/v1/checkin", body).status == 401, REVOKED_WITHIN)
        assert kept.sock is not None  # the same connection all along
        while (last := stream.event()) == "wake":  # the revocation is news, too; a wake-up says nothing
            pass
        assert last == "bye"
        assert stream.event() == ""
    assert device.checkin().status == 401
    assert device.ask("POST", "/.well-known/est/simplereenroll", {}).status == 401


def test_a_resumed_session_of_a_revoked_device_is_refused(server, device):
    context = server.context(device.identity)

    def connect(session):
        raw = socket.create_connection(server.address("devices"), 10)
        tls = context.wrap_socket(raw, server_hostname="127.0.0.1", session=session)
        body = json.dumps(checkin()).encode()
        tls.sendall(b"POST /device/v1/checkin HTTP/1.1\r\nHost: f\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        status = tls.recv(4096).split(b" ")[1]
        found = tls.session, tls.session_reused, status
        tls.close()
        return found

    session, _, status = connect(None)
    assert status == b"200"
    _, reused, status = connect(session)
    assert (reused, status) == (True, b"200")
    server.cli("device", "revoke", device.asset)
    until(lambda: connect(session)[2] == b"401", REVOKED_WITHIN)


def test_commands_reach_the_device_and_its_answer_ends_them(server, device):
    with device.stream() as stream:
        assert stream.event() == "hello"
        server.cli("device", "quarantine", device.asset, "--reason", "seen elsewhere")
        while stream.event() != "wake":
            pass
        while not (delivered := device.checkin().json().get("commands")):
            assert stream.event() == "wake"  # the one before was for something older: the news has yet to come
    assert len(delivered) == 1
    bundle = enrolment.parse_bundle(server.get("enrol", "/device/v1/enroll/bundle").body)
    root = authority.public_key(x509.from_pem(server.ca.read_text()))
    key = enrolment.verify_charter(bundle.charter, root).charter
    command = envelope.verify_command(
        base64.b64decode(delivered[0]["envelope"]),
        public=key.command,
        fleet=key.fleet,
        device=device.id,
        after=0,
        earliest=time.time(),
    )
    assert (command.verb, command.command.sequence) == ("quarantine", 1)
    assert device.answer(delivered[0]).status == 204
    assert device.answer(delivered[0]).status == 204  # the receipt may have got lost: it is noted once
    assert device.answer(delivered[0], outcome="refused").status == 404
    assert [each["action"] for each in server.device(device.asset)["history"]].count("command.answer") == 1
    assert "commands" not in device.checkin(state="quarantined").json()
    assert server.device(device.asset)["commands"][0]["state"] == "done"
    server.cli("device", "release", device.asset)
    assert server.device(device.asset)["state"] == "enrolled"


def test_a_device_is_asked_for_a_sign_of_life_as_long_as_it_is_one_of_ours(server, device):
    server.cli("device", "ping", device.asset)
    delivered = until(lambda: device.checkin().json().get("commands"))
    assert device.answer(delivered[0]).status == 204
    asked = server.device(device.asset)["commands"][0]
    assert (asked["verb"], asked["state"]) == ("ping", "done")
    known = device.id
    server.cli("device", "revoke", device.asset)
    server.cli("device", "attest", known, expect=11)
    server.cli("device", "ping", "nobody", expect=5)


def test_wipe_is_believed_when_it_is_proven_and_nothing_is_granted_after(server, device):
    server.cli("device", "wipe", device.asset, "--yes")
    until(lambda: device.ask("POST", "/device/v1/inventory", {"items": []}).status == 403, REVOKED_WITHIN)
    delivered = until(lambda: device.checkin().json().get("commands"))
    assert device.answer(delivered[0], keys_destroyed=True).status == 204
    shown = server.device(device.id)
    assert shown["state"] == "wiped"
    assert shown["history"][0]["action"] == "device.wiped"
    until(lambda: device.checkin().status in {401, 403}, REVOKED_WITHIN)
    server.cli("device", "release", device.id, expect=11)


def test_renewal_proves_itself_with_the_old_certificate(server, device):
    old_identity, old_id = device.identity.read_bytes(), device.id
    device.key = EcKey.generate()
    answer = server.ask(
        "devices",
        "POST",
        "/.well-known/est/simplereenroll",
        client_certificate.make_request(device.key),
        identity=device.identity,
    )
    assert answer.status == 200
    device.take(answer.body)
    assert device.id == old_id
    assert device.checkin().status == 200
    device.identity.write_bytes(old_identity)  # still good until it ends: the new one may not have arrived
    assert device.checkin().status == 200


def test_an_operators_yes_is_waited_for(server, tmp_path):
    token = server.token("ask-1", "--approve")
    device = Device(server, tmp_path, "ask-1")
    csr = client_certificate.make_request(device.key)
    first = server.enrol(token, csr)
    assert (first.status, first.headers["retry-after"]) == (202, "30")
    assert server.enrol(token, csr).status == 202
    assert server.device("ask-1")["state"] == "pending"
    assert server.device("ask-1")["key"] == hashlib.sha256(device.key.public.der()).hexdigest()
    thief = client_certificate.make_request(EcKey.generate())
    assert server.enrol(token, thief).status == 401
    server.cli("device", "approve", "ask-1")
    assert server.enrol(token, thief).status == 401, "the yes was to a key, and the token alone is none"
    answer = server.enrol(token, csr)
    assert answer.status == 200
    device.take(answer.body)
    assert device.checkin().status == 200
    assert server.enrol(token, csr).status == 401  # and once


def test_a_replacement_keeps_the_history_of_its_asset(server, device, tmp_path):
    successor = Device(server, tmp_path / "new", device.asset).enrol()
    assert successor.id != device.id
    until(lambda: device.checkin().status in {401, 403}, REVOKED_WITHIN)
    assert successor.checkin().status == 200
    shown = server.device(device.asset)
    assert (shown["id"], shown["replaces"]) == (successor.id, device.id)
    assert server.device(device.id)["state"] == "replaced"
    actions = [(each["action"], each["device"]) for each in shown["history"]]
    assert ("device.enrol", device.id) in actions
    assert ("device.replace", device.id) in actions
    assert ("device.enrol", successor.id) in actions


def test_an_expired_device_comes_back_under_its_name_with_an_operators_token(server, device):
    token = server.cli("token", "create", "--device", device.id)["token"]
    before, device.key = device.id, EcKey.generate()
    device.enrol(token)
    assert device.id == before
    assert device.checkin().status == 200


def test_an_inventory_is_stored_once_for_all_who_have_it(server, tmp_path):
    items = tuple(Item(kind="dpkg", name=f"lib{number}", version="1") for number in range(300))
    digest = hashlib.sha256(canonical_inventory(Inventory(items))).hexdigest()
    body = json.loads(canonical_inventory(Inventory(items)))
    first, second = (Device(server, tmp_path, f"inv-{each}").enrol() for each in "ab")
    assert first.checkin(inventory=digest).json()["inventory_wanted"] is True
    assert first.ask("POST", "/device/v1/inventory", body).status == 204
    until(lambda: "inventory_wanted" not in first.checkin(inventory=digest).json())
    assert "inventory_wanted" not in second.checkin(inventory=digest).json()  # linked, never sent
    assert second.checkin(inventory="0" * 64).json()["inventory_wanted"] is True


def test_nobody_learns_what_is_wrong_with_a_token(server, tmp_path):
    used = server.token("tok-1")
    Device(server, tmp_path, "tok-1").enrol(used)
    csr = client_certificate.make_request(EcKey.generate())
    revoked = server.cli("token", "create", "--asset", "tok-2")
    server.cli("token", "revoke", revoked["id"])
    wrong = used[:-5] + "AAAAA"
    answers = [server.enrol(each, csr) for each in (used, revoked["token"], wrong, "x", "")]
    assert [each.status for each in answers] == [401] * 5
    assert len({each.body for each in answers[:4]}) == 1  # nobody learns which it was
    assert used not in json.dumps(server.cli("token", "list"))


def test_health_and_metrics(server, device):
    assert server.get("people", "/healthz").json() == {"ok": True}
    before = server.metric("casemate_fleet_checkins_total")
    device.checkin()
    assert server.metric("casemate_fleet_checkins_total") == before + 1
    assert server.metric('casemate_fleet_certificates_issued_total{way="token"}') >= 1


def test_a_restart_keeps_everything(tmp_path):
    with running(tmp_path / "fleet") as server:
        device = Device(server, tmp_path, "stay-1").enrol()
        addresses = server.addresses
        assert server.stop() == 0
        server.start()
        assert server.addresses["ca"] == addresses["ca"]
        assert device.checkin().status == 200
        server.stop(signal.SIGKILL)
        server.start()
        assert device.checkin().status == 200


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(AssertionError, match="not empty"):
        Server(tmp_path).start()
    assert [each.name for each in tmp_path.iterdir()] == ["precious"]


def test_a_token_needs_basic_authentication(server):
    csr = client_certificate.make_request(EcKey.generate())
    path = "/.well-known/est/simpleenroll"
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic %%%"}, basic("")):
        assert server.ask("enrol", "POST", path, csr, headers).status == 401


def test_a_first_start_that_fails_can_be_tried_again(tmp_path):
    server = Server(tmp_path / "fleet", database="postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(AssertionError, match="database did not answer"):
        server.start()
    with running(tmp_path / "fleet") as again:
        assert again.get("people", "/healthz").status == 200
