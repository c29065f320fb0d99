"""The certificate of a connection: from our own TLS, or from a proxy on our unix socket. Never from anywhere else.

A header that carries a certificate is read on a unix socket only, where nobody but the proxy can write; there it is
parsed again and its signature checked again. A TLS listener has no code that looks at one.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from typing import Final, Protocol
from urllib.parse import unquote

from starlette.requests import Request

from casemate.crypto import authority, x509
from casemate.errors import UntrustedDataError
from casemate.fleet.context import Fleet

EXTENSION: Final = "casemate.peer"
HEADER: Final = "x-casemate-client-cert"
"""nginx: `proxy_set_header X-Casemate-Client-Cert $ssl_client_escaped_cert;` (URL-encoded PEM)."""
_MAX_HEADER: Final = 8192
_KEPT: Final = 200_000
"""Headers that were found to be ours, about a kilobyte each. Fewer than the devices that call in turn would be none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A certificate whose holder is at the other end: serial (hex), the device it names, the certificate (DER)."""

    serial: str
    device: str
    certificate: bytes


class Peers(Protocol):
    """Where a listener finds the certificate of a request."""

    def of(self, request: Request) -> Peer | None:
        """Return the peer, None when there is no certificate."""
        ...


class TlsPeers:
    """TLS ends here: the protocol put the connection's certificate into the scope."""

    def of(self, request: Request) -> Peer | None:
        """Return what the handshake proved."""
        peer = request.scope.get("extensions", {}).get(EXTENSION)
        return peer if isinstance(peer, Peer) else None


class ProxyPeers:
    """TLS ends at a proxy, which reaches us over a unix socket.

    A device sends one certificate for days. To parse it and check its signature costs twice what the check-in does, so
    it is done once: what is held is the digest of a header that was found to be ours. Whether the certificate still
    counts is not held here: `identity.Directory` asks that on every request.
    """

    def __init__(self, fleet: Fleet) -> None:
        """Check what the proxy passes on against the fleet's authority."""
        self._fleet = fleet
        self._authority = fleet.authority
        self._proven: collections.OrderedDict[bytes, Peer] = collections.OrderedDict()

    def of(self, request: Request) -> Peer | None:
        """Return the peer that the proxy names; two headers, or one that is no certificate of ours, is none."""
        values = request.headers.getlist(HEADER)
        if len(values) != 1 or not 0 < len(values[0]) <= _MAX_HEADER:
            return None
        if self._authority is not self._fleet.authority:  # rotated: what the old one vouched for is asked again
            self._authority = self._fleet.authority
            self._proven.clear()
        digest = hashlib.sha256(values[0].encode("latin-1")).digest()
        peer = self._proven.get(digest)
        if peer is None:
            peer = self._read(values[0])
            if peer is None:
                return None
            self._proven[digest] = peer
            if len(self._proven) > _KEPT:
                self._proven.popitem(last=False)
        else:
            self._proven.move_to_end(digest)
        return peer

    def _read(self, value: str) -> Peer | None:
        try:
            peer = read_peer(x509.from_pem(unquote(value)))
        except UntrustedDataError:
            return None
        return peer if peer and self._authority.is_ours(peer.certificate) else None


def read_peer(certificate: bytes) -> Peer | None:
    """Return the peer with *certificate* (DER), None when it names no device."""
    try:
        facts = authority.facts(certificate)
    except UntrustedDataError:
        return None
    return Peer(facts.serial, facts.device, certificate) if facts.device else None
