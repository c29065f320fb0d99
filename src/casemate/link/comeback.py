"""Coming back to a fleet that takes this device's certificate no more, over its enrolment listener.

With a TPM the device proves that it is who it was; without one it shows the key of its last certificate and waits for a
person's yes. What the fleet answers is a table; what follows from it, and when to ask again, decides the caller.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from casemate.crypto import client_certificate
from casemate.crypto.client_certificate import Certificate
from casemate.crypto.ecdsa import EcKey
from casemate.errors import CasemateError, UntrustedDataError
from casemate.formats import fleet_api
from casemate.link.client import FleetClient, HungUpError, Reply
from casemate.link.enrol import TPM_HELLO, TPM_PROOF

RETURN: Final = "/device/v1/enroll/return"
HANG_UPS: Final = 3
"""Connections in a row that were opened and cut before an answer: a server's refusal may get lost on the way."""
_OK: Final = 200
_NOT_THIS_TPM: Final = 401


class Kind(StrEnum):
    """How asking went."""

    BACK = "back"
    WAITING = "waiting"
    REFUSED = "refused"
    LATER = "later"


_KINDS: Final = {_OK: Kind.BACK, 202: Kind.WAITING, 401: Kind.REFUSED, 403: Kind.REFUSED}
"""What a status means; any other (409: the certificate holds after all) is no word about this device's standing."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How asking went: the new chain (leaf first), or why there is none and the seconds asked to wait."""

    kind: Kind
    chain: tuple[Certificate, ...] = ()
    why: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Introduction:
    """Which TPM this is: the maker's certificate (DER, or empty), endorsement key and attestation key."""

    certificate: bytes
    endorsement_key: bytes
    attestation_key: bytes


class Chip(Protocol):
    """What is needed of the process that has the TPM."""

    def introduce(self) -> Introduction | None:
        """Say which TPM this is; None: there is none."""
        ...

    def prove(self, identity: bytes, encrypted: bytes, csr: bytes) -> bytes:
        """Return `fleet_api.return_proof` of the secret in a credential."""
        ...


def is_cut_off(error: CasemateError, *, turned_away: bool, failures: int, ended: bool) -> bool:
    """Whether a check-in that failed with *error* may have failed because of this device's certificate.

    *turned_away*: the fleet said so. *ended*: the certificate has, by the newest time known. Asking in vain costs one
    request, so that it may be is enough.
    """
    if turned_away:
        return True
    if not isinstance(error, HungUpError):
        return False
    return error.for_certificate or ended or failures >= HANG_UPS


def come_back(client: FleetClient, leaf: Certificate, key: EcKey, root: Certificate, chip: Chip) -> Outcome:
    """Ask the enrolment listener for the next certificate of the device that *leaf* names.

    Raises:
        OperationError: nobody answered, or the TPM did not.
        UntrustedDataError: the server, or the certificate, is not this fleet's.

    """
    csr = client_certificate.make_request(key)
    serial = format(leaf.serial, "x")
    tpm = chip.introduce()
    if tpm is not None:
        hello = fleet_api.TpmHello(
            ek_public=tpm.endorsement_key,
            ak_public=tpm.attestation_key,
            csr=csr,
            ek_certificate=tpm.certificate,
            device=leaf.device,
            serial=serial,
        )
        answer = _post(client, TPM_HELLO, hello)
        if answer.status == _OK:
            credential = fleet_api.parse(answer.body, fleet_api.TpmCredential)
            proof = fleet_api.TpmProof(chip.prove(credential.identity, credential.encrypted, csr))
            answer = _post(client, TPM_PROOF, proof)
            if answer.status == _NOT_THIS_TPM:  # it took too long, or the server forgot what it asked
                return Outcome(Kind.LATER, why=fleet_api.problem(answer.body))
            return _read(answer, leaf, key, root)
        if answer.status != _NOT_THIS_TPM:
            return _read(answer, leaf, key, root)
    return _read(_post(client, RETURN, fleet_api.ReturnAsk(leaf.device, serial, csr)), leaf, key, root)


def _post(client: FleetClient, path: str, message: msgspec.Struct) -> Reply:
    return client.request("POST", path, fleet_api.encode(message))


def _read(answer: Reply, leaf: Certificate, key: EcKey, root: Certificate) -> Outcome:
    kind = _KINDS.get(answer.status, Kind.LATER)
    if kind is not Kind.BACK:
        why = fleet_api.problem(answer.body) or f"the fleet answered with status {answer.status}"
        return Outcome(kind, why=why, seconds=answer.retry_after)
    given = fleet_api.parse(answer.body, fleet_api.TpmWelcome)
    fresh, *above = (client_certificate.read(each) for each in given.chain)
    if fresh.public.der() != key.public.der() or fresh.device != leaf.device:
        raise UntrustedDataError("the certificate is not this device's", check="certificate-device")
    return Outcome(kind, tuple(client_certificate.chain_to(fresh, above, root)))
