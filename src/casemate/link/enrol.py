"""Joining a fleet (EST, RFC 7030): find the pinned root, learn the charter, spend a one-time token on a certificate.

The token is a secret that works once. It is sent only over a connection whose server proved itself by a chain to the
root that the token (or the person, with `--ca`) names, so nobody in between can spend it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import secrets
from typing import Final, Protocol
from urllib.parse import urlsplit

from casemate.crypto import client_certificate
from casemate.crypto.client_certificate import Certificate
from casemate.crypto.ecdsa import EcKey
from casemate.errors import NotAuthorisedError, OperationError, UntrustedDataError
from casemate.formats import enrolment, fleet_api
from casemate.formats.enrolment import Token, VerifiedCharter
from casemate.link.client import FleetClient, Reply, tls_context

CACERTS: Final = "/.well-known/est/cacerts"
SIMPLE_ENROLL: Final = "/.well-known/est/simpleenroll"
SIMPLE_REENROLL: Final = "/.well-known/est/simplereenroll"
TPM_HELLO: Final = "/device/v1/enroll/tpm/challenge"
TPM_PROOF: Final = "/device/v1/enroll/tpm/complete"
BUNDLE: Final = "/device/v1/enroll/bundle"
_OK: Final = 200
_ACCEPTED: Final = 202
_REFUSED: Final = frozenset({401, 403})


@dataclasses.dataclass(frozen=True)
class Enrolled:
    """What joining gave: the device's chain (leaf first), the fleet's root and charter, where devices connect."""

    chain: list[Certificate]
    root: Certificate
    charter: VerifiedCharter
    devices: str


class Chip(Protocol):
    """What joining needs of a TPM (`keystores.tss.Tpm` is one)."""

    def endorsement(self) -> tuple[bytes, bytes]:
        """Return the maker's certificate (DER, or empty) and the endorsement key."""
        ...

    def attestation_key(self) -> bytes:
        """Return the attestation key."""
        ...

    def activate(self, identity: bytes, encrypted: bytes) -> bytes:
        """Open a credential."""
        ...


def join(url: str, token: Token, key: EcKey, root: Certificate | None, chip: Chip | None = None) -> Enrolled:
    """Enrol *key* at the enrolment listener *url* with *token*; *root* given stands above the token's pin.

    With a *chip* the fleet learns which TPM this is, and can have it prove what runs here.

    Raises:
        OperationError: nobody answered, or the answer makes no sense.
        NotAuthorisedError: the token was used before, has ended, or was revoked; or an operator has to approve first.
        UntrustedDataError: the server, the certificate or the charter is not this fleet's.

    """
    pinned = root or _pinned_root(url, token)
    client = FleetClient(url, tls_context(pinned.der))
    try:
        charter, devices = _charter(client, url, pinned)
        if chip is None:
            chain = _certificate(client, SIMPLE_ENROLL, key, pinned, {"authorization": _basic(token)})
        else:
            chain = _certificate_for_tpm(client, key, pinned, token, chip)
    finally:
        client.close()
    return Enrolled(chain, pinned, charter, devices)


def renew(client: FleetClient, key: EcKey, root: Certificate) -> list[Certificate]:
    """Ask the devices' listener, over mutual TLS, for a certificate for *key*; returns the chain.

    Raises:
        as `join`.

    """
    return _certificate(client, SIMPLE_REENROLL, key, root, {})


def _pinned_root(url: str, token: Token) -> Certificate:
    """Fetch the fleet's certificates from whoever answers, and take the one that the token names.

    RFC 7030 section 4.1.1: a fingerprint from outside makes an unauthenticated answer safe. Nothing else is taken.
    """
    client = FleetClient(url, tls_context(None))
    try:
        offered = _pkcs7(client.request("GET", CACERTS))
    finally:
        client.close()
    for certificate in offered:
        if hmac.compare_digest(certificate.sha256, token.root_sha256):
            return certificate
    raise UntrustedDataError(
        "this server is not of the fleet that made the token",
        check="fleet-root",
        hint="check the address; the token was not sent",
    )


def _certificate(
    client: FleetClient, path: str, key: EcKey, root: Certificate, headers: dict[str, str]
) -> list[Certificate]:
    body = base64.b64encode(client_certificate.make_request(key))
    kind = {"content-type": "application/pkcs10", "content-transfer-encoding": "base64"}
    reply = client.request("POST", path, body, {**kind, **headers})
    if reply.status == _ACCEPTED:
        asked = hashlib.sha256(key.public.der()).hexdigest()
        raise NotAuthorisedError(
            f"the fleet's operator has to approve this device, whose key is {asked}",
            hint="have them compare it with what they see; then run this again, with the same token",
        )
    issued = _pkcs7(reply)
    leaf = issued[0]
    if leaf.public.der() != key.public.der() or not leaf.device:
        raise UntrustedDataError("the certificate is not for this device's key", check="certificate-key")
    try:
        return client_certificate.chain_to(leaf, issued[1:], root)
    except UntrustedDataError:
        return client_certificate.chain_to(leaf, _pkcs7(client.request("GET", CACERTS)), root)


def _certificate_for_tpm(
    client: FleetClient, key: EcKey, root: Certificate, token: Token, chip: Chip
) -> list[Certificate]:
    """Tie *key* to the TPM: the fleet's credential opens in this TPM alone, its secret brings the certificate."""
    maker, endorsement_key = chip.endorsement()
    hello = fleet_api.TpmHello(
        ek_public=endorsement_key,
        ak_public=chip.attestation_key(),
        csr=client_certificate.make_request(key),
        ek_certificate=maker,
        token=token.text,
    )
    asked = _granted(client.request("POST", TPM_HELLO, fleet_api.encode(hello)))
    credential = fleet_api.parse(asked, fleet_api.TpmCredential)
    proof = fleet_api.TpmProof(chip.activate(credential.identity, credential.encrypted))
    done = _granted(client.request("POST", TPM_PROOF, fleet_api.encode(proof)))
    leaf, *above = (client_certificate.read(each) for each in fleet_api.parse(done, fleet_api.TpmWelcome).chain)
    if leaf.public.der() != key.public.der() or not leaf.device:
        raise UntrustedDataError("the certificate is not for this device's key", check="certificate-key")
    return client_certificate.chain_to(leaf, above, root)


def _granted(reply: Reply) -> bytes:
    if reply.status in _REFUSED:
        raise NotAuthorisedError(
            "the fleet refused this TPM or its token", hint="ask for a new token, or have the TPM listed"
        )
    if reply.status != _OK:
        raise _unexpected(reply)
    return reply.body


def _charter(client: FleetClient, url: str, root: Certificate) -> tuple[VerifiedCharter, str]:
    reply = client.request("GET", BUNDLE)
    if reply.status != _OK:
        raise _unexpected(reply)
    bundle = enrolment.parse_bundle(reply.body)
    devices = bundle.devices
    if urlsplit(devices).hostname in {"0.0.0.0", "::"}:  # noqa: S104 - recognised, not bound
        devices = devices.replace(str(urlsplit(devices).hostname), str(urlsplit(url).hostname))
    return enrolment.verify_charter(bundle.charter, root.public), devices


def _pkcs7(reply: Reply) -> list[Certificate]:
    if reply.status in _REFUSED:
        raise NotAuthorisedError(
            "the fleet refused the token: it was used before, has ended, or was revoked", hint="ask for a new one"
        )
    if reply.status != _OK:
        raise _unexpected(reply)
    try:
        return client_certificate.of_pkcs7(base64.b64decode(b"".join(reply.body.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        raise UntrustedDataError("the fleet's answer is not base64", check="certificate-format") from error


def _unexpected(reply: Reply) -> OperationError:
    return OperationError(
        f"the fleet answered with status {reply.status}", hint="is this the address of its enrolment listener?"
    )


def _basic(token: Token) -> str:
    return "Basic " + base64.b64encode(f"device:{token.text}".encode()).decode("ascii")


def draw() -> float:
    """Return a number in [0, 1) that nobody can foresee."""
    return secrets.randbelow(1 << 32) / (1 << 32)
