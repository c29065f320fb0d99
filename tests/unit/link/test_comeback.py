"""Whether a check-in that failed is a reason to ask the fleet back in, and what its answer means."""

from __future__ import annotations

import itertools

import pytest
from cryptography.hazmat.primitives import serialization

from casemate.crypto import client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import fleet_api
from casemate.link import comeback
from casemate.link.client import HungUpError, Reply
from casemate.link.comeback import HANG_UPS, Introduction, Kind
from support.fleet_server import Authority

_DER = serialization.Encoding.DER
DEVICE = "0f0e0d0c-0b0a-4908-8706-050403020100"
SILENCE = OperationError("no answer")


def hung_up(*, for_certificate=False):
    return HungUpError("cut", "hint", for_certificate=for_certificate)


def test_what_the_network_does_is_no_reason_and_what_the_fleet_does_is():
    for turned_away, failures, ended in itertools.product((False, True), range(2 * HANG_UPS), (False, True)):
        said = {"turned_away": turned_away, "failures": failures, "ended": ended}
        assert comeback.is_cut_off(SILENCE, **said) == turned_away
        assert comeback.is_cut_off(hung_up(for_certificate=True), **said)
        assert comeback.is_cut_off(hung_up(), **said) == (turned_away or ended or failures >= HANG_UPS)


class Fleet:
    """Answers what it is told to, and notes what it was asked."""

    def __init__(self, *replies: Reply) -> None:
        self.replies, self.asked = list(replies), []

    def request(self, method: str, path: str, body: bytes) -> Reply:
        self.asked.append((path, body))
        return self.replies.pop(0)


class Chip:
    def __init__(self, *, there: bool) -> None:
        self.there = there

    def introduce(self) -> Introduction | None:
        return Introduction(b"", b"ek", b"ak") if self.there else None

    def prove(self, identity: bytes, encrypted: bytes, csr: bytes) -> bytes:
        return fleet_api.return_proof(b"s" * 32, csr)


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def key():
    return EcKey.generate()


def issued(authority, key, device=DEVICE):
    return client_certificate.read(authority.device(key.public.key, device).public_bytes(_DER))


def asking(authority, key, *replies, there=False):
    root, fleet = client_certificate.read(authority.root_der), Fleet(*replies)
    return fleet, comeback.come_back(fleet, issued(authority, key), key, root, Chip(there=there))


def welcome(authority, key, device=DEVICE):
    chain = (issued(authority, key, device).der, authority.issuer.public_bytes(_DER))
    return Reply(200, fleet_api.encode(fleet_api.TpmWelcome(device, chain)))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (202, Kind.WAITING),
        (401, Kind.REFUSED),
        (403, Kind.REFUSED),
        (409, Kind.LATER),
        (429, Kind.LATER),
        (503, Kind.LATER),
    ],
)
def test_an_answer_without_a_certificate_is_one_of_three_things(authority, key, status, kind):
    fleet, found = asking(authority, key, Reply(status, b'{"title":"so it is"}', 7.0))
    assert (found.kind, found.why, found.seconds) == (kind, "so it is", 7.0)
    assert [path for path, _ in fleet.asked] == [comeback.RETURN]


def test_a_certificate_is_taken_when_it_is_ours(authority, key):
    _, found = asking(authority, key, welcome(authority, key))
    assert (found.kind, found.chain[0].device) == (Kind.BACK, DEVICE)
    for wrong in (welcome(authority, EcKey.generate()), welcome(authority, key, DEVICE.replace("0f", "1f"))):
        with pytest.raises(UntrustedDataError) as caught:
            asking(authority, key, wrong)
        assert caught.value.check == "certificate-device"
    with pytest.raises(UntrustedDataError) as caught:
        asking(authority, key, welcome(Authority("another"), key))
    assert caught.value.check == "certificate-issuer"


def test_a_tpm_that_the_fleet_does_not_know_leaves_the_old_key_and_one_that_is_out_leaves_nothing(authority, key):
    fleet, found = asking(authority, key, Reply(401, b"{}"), Reply(202, b"{}"), there=True)
    assert (found.kind, len(fleet.asked)) == (Kind.WAITING, 2)
    fleet, found = asking(authority, key, Reply(403, b"{}"), there=True)
    assert (found.kind, len(fleet.asked)) == (Kind.REFUSED, 1)
    credential = Reply(200, fleet_api.encode(fleet_api.TpmCredential(b"i", b"e", 60)))
    fleet, found = asking(authority, key, credential, welcome(authority, key), there=True)
    hello = fleet_api.parse(fleet.asked[0][1], fleet_api.TpmHello)
    proof = fleet_api.parse(fleet.asked[1][1], fleet_api.TpmProof)
    assert (found.kind, hello.device, hello.token) == (Kind.BACK, DEVICE, "")
    assert proof.secret == fleet_api.return_proof(b"s" * 32, hello.csr)
    _, found = asking(authority, key, credential, Reply(401, b"{}"), there=True)
    assert found.kind is Kind.LATER, "the question was too old"
