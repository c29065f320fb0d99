"""A device's own certificate, from the device's side: ask for one, read what came back, check whose it is.

Times are given out and never judged here: a device's clock proves nothing. Who issues certificates is `crypto.x509`'s
business; a request carries a key and proof that we hold it, no name that anybody would believe.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.crypto.x509 import is_issued_by, load
from casemate.errors import UntrustedDataError

_URN: Final = re.compile(r"urn:uuid:([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\Z")
_MOST: Final = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says. Moments are Unix seconds; `device` is its one urn:uuid name, empty without one."""

    der: bytes
    serial: int
    not_before: int
    not_after: int
    device: str
    authority: bool

    @property
    def sha256(self) -> bytes:
        """Return the fingerprint."""
        return hashlib.sha256(self.der).digest()

    @property
    def public(self) -> EcPublic:
        """Return its key.

        Raises:
            UntrustedDataError: `ec-key`.

        """
        return EcPublic.checked(load(self.der).public_key())


def make_request(key: EcKey) -> bytes:
    """Return a PKCS #10 request (DER) for *key*. The server names the device; the request does not."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key.key, hashes.SHA256()).public_bytes(Encoding.DER)


def read(der: bytes) -> Certificate:
    """Read one certificate (DER).

    Raises:
        UntrustedDataError: `certificate-format`.

    """
    found = load(der)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        urns = [
            match[1] for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if (match := _URN.match(uri))
        ]
    except x509.ExtensionNotFound:
        urns = []
    except (ValueError, x509.DuplicateExtension) as error:
        raise UntrustedDataError("the certificate is malformed", check="certificate-format") from error
    return Certificate(
        der=der,
        serial=found.serial_number,
        not_before=int(found.not_valid_before_utc.timestamp()),
        not_after=int(found.not_valid_after_utc.timestamp()),
        device=urns[0] if len(urns) == 1 else "",
        authority=_is_authority(found),
    )


def of_pkcs7(data: bytes) -> list[Certificate]:
    """Read a certificates-only PKCS #7 message (DER), as EST sends it.

    Raises:
        UntrustedDataError: `certificate-format`.

    """
    try:
        found = pkcs7.load_der_pkcs7_certificates(data)
    except ValueError as error:
        raise UntrustedDataError("not a certificates-only message", check="certificate-format") from error
    if not 1 <= len(found) <= _MOST:
        raise UntrustedDataError("a message of no certificate, or of too many", check="certificate-format")
    return [read(item.public_bytes(Encoding.DER)) for item in found]


def chain_to(leaf: Certificate, others: Sequence[Certificate], root: Certificate) -> list[Certificate]:
    """Return *leaf* and what stands between it and *root*, each issued by the next and the last by *root*.

    Raises:
        UntrustedDataError: `certificate-issuer`.

    """
    chain = [leaf]
    authorities = [other for other in others if other.authority and other.der != root.der]
    while not _is_issued_by(chain[-1], root):
        above = next((other for other in authorities if other not in chain and _is_issued_by(chain[-1], other)), None)
        if above is None:
            raise UntrustedDataError("the certificate was not issued by this fleet", check="certificate-issuer")
        chain.append(above)
    return chain


def _is_issued_by(child: Certificate, parent: Certificate) -> bool:
    return parent.authority and is_issued_by(child.der, parent.der)


def from_pem(data: bytes) -> list[Certificate]:
    """Read every certificate of a PEM file.

    Raises:
        UntrustedDataError: `certificate-format`.

    """
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise UntrustedDataError("not a PEM file of certificates", check="certificate-format") from error
    return [read(item.public_bytes(Encoding.DER)) for item in found]


def to_pem(certificates: Sequence[Certificate]) -> bytes:
    """Return *certificates* as PEM, in order."""
    return b"".join(load(item.der).public_bytes(Encoding.PEM) for item in certificates)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
