"""Joining a fleet: the right server, the right root, one token, and everybody else."""

from __future__ import annotations

import time

import pytest

from casemate.crypto import client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.errors import NotAuthorisedError, OperationError, UntrustedDataError
from casemate.formats import enrolment
from casemate.link import enrol
from casemate.link.client import FleetClient, Identity, tls_context
from support import fleet_server


@pytest.fixture
def fleet(tmp_path):
    with fleet_server.serving(tmp_path / "fleet") as server:
        yield server


def join(fleet, key=None, token=None, root=None):
    return enrol.join(fleet.enrol_url, enrolment.parse_token(token or fleet.token), key or EcKey.generate(), root)


def identity(tmp_path, joined, key) -> Identity:
    found = Identity(tmp_path / "device.crt", tmp_path / "device.key")
    found.certificate.write_bytes(client_certificate.to_pem(joined.chain))
    found.key.write_bytes(key.pem())
    return found


def test_a_token_gives_a_certificate_for_our_key_and_the_charter(fleet, tmp_path):
    key = EcKey.generate()
    joined = join(fleet, key)
    assert joined.chain[0].public.der() == key.public.der()
    assert joined.charter.charter.command == fleet.commander.public
    assert joined.root.der == fleet.authority.root_der
    context = tls_context(joined.root.der, identity(tmp_path, joined, key))
    client = FleetClient(joined.devices, context)
    assert client.request("POST", "/device/v1/checkin", b"{}").status == 200
    assert client.address == "127.0.0.1"
    renewed = enrol.renew(client, key, joined.root)
    assert renewed[0].device == joined.chain[0].device
    client.close()


def test_a_token_works_once(fleet):
    join(fleet)
    with pytest.raises(NotAuthorisedError):
        join(fleet)


def test_a_server_of_another_fleet_never_sees_the_token(fleet):
    other = enrolment.make_token(b"x" * 32, fleet_server.Authority("other").root_der)
    fleet.tokens.add(other)
    with pytest.raises(UntrustedDataError) as caught:
        join(fleet, token=other)
    assert caught.value.check == "fleet-root"
    assert other in fleet.tokens


def test_a_root_that_a_person_gave_stands_above_the_pin(fleet):
    wrong = client_certificate.read(fleet_server.Authority("other").root_der)
    with pytest.raises(UntrustedDataError) as caught:
        join(fleet, root=wrong)
    assert caught.value.check == "server-certificate"
    assert fleet.token in fleet.tokens


def test_a_listener_that_swaps_the_command_key_is_caught_before_the_token_is_sent(fleet):
    fleet.authority.root_key = EcKey.generate().key  # the charter is now signed by somebody else
    with pytest.raises(UntrustedDataError) as caught:
        join(fleet)
    assert caught.value.check == "envelope-signature"
    assert fleet.token in fleet.tokens


def test_without_a_certificate_the_devices_listener_answers_nothing(fleet):
    client = FleetClient(fleet.devices_url, tls_context(fleet.authority.root_der))
    with pytest.raises(OperationError):
        client.request("POST", "/device/v1/checkin", b"{}")
    client.close()


def test_a_certificate_that_ended_before_the_fleets_own_word_is_refused_whatever_our_clock_says(fleet):
    context = tls_context(fleet.authority.root_der)
    month = 31 * 86_400
    for earliest, good in ((time.time(), True), (time.time() + month, False)):
        client = FleetClient(fleet.enrol_url, context, earliest=lambda moment=earliest: moment)
        if good:
            assert client.request("GET", enrol.CACERTS).status == 200
        else:
            with pytest.raises(UntrustedDataError) as caught:
                client.request("GET", enrol.CACERTS)
            assert caught.value.check == "server-certificate-expired"
        client.close()


def test_a_known_address_needs_no_names(fleet):
    client = FleetClient(fleet.enrol_url, tls_context(fleet.authority.root_der), address="127.0.0.1")
    assert client.request("GET", enrol.CACERTS).status == 200
    client.close()


def test_nobody_there_is_said_plainly():
    token = enrolment.parse_token(enrolment.make_token(b"x" * 32, b"r"))
    with pytest.raises(OperationError, match="no answer from the fleet"):
        enrol.join("https://127.0.0.1:9", token, EcKey.generate(), None)
    with pytest.raises(OperationError, match="no https address"):
        enrol.join("http://127.0.0.1:9", token, EcKey.generate(), None)
