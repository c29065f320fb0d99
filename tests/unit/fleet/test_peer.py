"""Certificates that a proxy passes on: proven once, held by what was sent, asked again when the authority changes."""

from __future__ import annotations

import time
import types
from urllib.parse import quote

import pytest
from starlette.requests import Request

from casemate.crypto import authority, x509
from casemate.crypto.authority import Issuer
from casemate.crypto.ecdsa import EcKey
from casemate.fleet import peer
from casemate.fleet.peer import HEADER, ProxyPeers
from casemate.fleet.pki import Authority

LEAF = EcKey.generate()


class Counted(Authority):
    """An authority that is asked to check signatures, and counts how often."""

    def is_ours(self, certificate):
        CHECKED.append(certificate)
        return super().is_ours(certificate)


CHECKED = []


@pytest.fixture(autouse=True)
def none_checked():
    CHECKED.clear()


def new_authority():
    key = EcKey.generate()
    root = authority.make_root(key, "root", time.time(), 10)
    return Counted(root, (root,), Issuer(key, root))


def header_of(made, device="d"):
    return quote(x509.to_pem(made.issue_device(LEAF.public, device, time.time()))).encode()


def request(*values):
    return Request({"type": "http", "headers": [(HEADER.encode(), value) for value in values]})


@pytest.fixture
def fleet():
    return types.SimpleNamespace(authority=new_authority())


def test_a_header_is_proven_once(fleet):
    peers, sent = ProxyPeers(fleet), header_of(fleet.authority)
    assert [peers.of(request(sent)).device for _ in range(3)] == ["d"] * 3
    assert len(CHECKED) == 1
    assert peers.of(request(header_of(fleet.authority, "other"))).device == "other"
    assert len(CHECKED) == 2


def test_what_a_stranger_sends_is_checked_every_time_and_never_held(fleet):
    peers, forged = ProxyPeers(fleet), header_of(new_authority())
    assert [peers.of(request(forged)) for _ in range(3)] == [None] * 3
    assert len(CHECKED) == 3
    sent = header_of(fleet.authority)
    assert peers.of(request(sent))
    assert peers.of(request(sent, forged)) is None


def test_another_authority_asks_again(fleet):
    peers, sent = ProxyPeers(fleet), header_of(fleet.authority)
    assert peers.of(request(sent))
    fleet.authority = new_authority()
    assert peers.of(request(sent)) is None


def test_what_is_held_is_bounded_and_the_least_used_goes(fleet, monkeypatch):
    monkeypatch.setattr(peer, "_KEPT", 2)
    peers = ProxyPeers(fleet)
    first, second, third = (header_of(fleet.authority, name) for name in "abc")
    for sent in (first, second, first, third):
        peers.of(request(sent))
    assert len(CHECKED) == 3
    peers.of(request(first))
    assert len(CHECKED) == 3
    peers.of(request(second))
    assert len(CHECKED) == 4
