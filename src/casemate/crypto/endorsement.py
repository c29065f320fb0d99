"""Endorsement certificates: which maker says that a key lives in one of its TPMs.

A certificate counts when one of the operator's listed issuers signed it. The list names *issuing* authorities (makers
publish them): there is no path to build, so nothing a device sends can become an issuer. A software TPM is told apart,
by its model or its issuer's name, for the caller to refuse outside of tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from casemate.crypto.tpm import PublicKey
from casemate.errors import UntrustedDataError

LIMIT: Final = 8192
_EK_PURPOSE: Final = x509.ObjectIdentifier("2.23.133.8.1")
_MODEL: Final = x509.ObjectIdentifier("2.23.133.2.2")
_SOFTWARE: Final = "swtpm"


@dataclasses.dataclass(frozen=True)
class Endorsement:
    """A certificate that the listed *authority* (DER) signed. *software*: the TPM is a program, not a chip."""

    key: PublicKey
    authority: bytes
    model: str
    software: bool


def verify_endorsement(certificate: bytes, issuers: Iterable[bytes], at: float) -> Endorsement:
    """Check an EK certificate (DER) against the listed *issuers* (DER) at the moment *at* (seconds).

    Raises:
        UntrustedDataError: `ek-certificate` not a certificate for an EK, or not valid then; `ek-issuer` no listed
            issuer signed it (an empty list lists nobody).

    """
    found = _load(certificate)
    authority = next((known for known in issuers if _issued(found, _load(known), at)), None)
    if authority is None:
        raise UntrustedDataError(
            f"no listed maker issued this TPM's certificate ({found.issuer.rfc4514_string()})",
            check="ek-issuer",
            hint="add the certificate the maker issues with to the fleet's list of makers",
        )
    _check_purpose(found, at)
    key = found.public_key()
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise UntrustedDataError("the EK certificate is for a key of another kind", check="ek-certificate")
    model, name = _model(found), found.issuer.rfc4514_string()
    return Endorsement(key, authority, model, _SOFTWARE in model.lower() or _SOFTWARE in name.lower())


def issuer_certificate(data: bytes) -> tuple[bytes, str]:
    """Read a maker's issuing certificate (PEM or DER) for the list; returns its DER and its name.

    Raises:
        UntrustedDataError: `ek-certificate` not a certificate, or not one that issues.

    """
    try:
        pem = data.lstrip().startswith(b"-----")
        found = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise UntrustedDataError("not a certificate", check="ek-certificate") from error
    if not _issues(found):
        raise UntrustedDataError("the certificate is not one of an authority", check="ek-certificate")
    return found.public_bytes(Encoding.DER), found.subject.rfc4514_string()


def _load(der: bytes) -> x509.Certificate:
    try:
        if len(der) > LIMIT:
            raise ValueError("too large")  # noqa: TRY301 - one place words the refusal
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise UntrustedDataError("the EK certificate is not a certificate", check="ek-certificate") from error


def _issued(certificate: x509.Certificate, issuer: x509.Certificate, at: float) -> bool:
    if not _issues(issuer) or not _valid(issuer, at):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _issues(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return constraints.ca and usage.key_cert_sign


def _valid(certificate: x509.Certificate, at: float) -> bool:
    return certificate.not_valid_before_utc.timestamp() <= at <= certificate.not_valid_after_utc.timestamp()


def _check_purpose(certificate: x509.Certificate, at: float) -> None:
    try:
        purposes = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        authority = _issues(certificate)
    except x509.ExtensionNotFound:
        purposes, authority = [], False
    except (ValueError, x509.DuplicateExtension) as error:
        raise UntrustedDataError("the EK certificate is malformed", check="ek-certificate") from error
    if authority or _EK_PURPOSE not in purposes or not _valid(certificate, at):
        raise UntrustedDataError("the certificate is not one of an endorsement key, or not now", check="ek-certificate")


def _model(certificate: x509.Certificate) -> str:
    """Return the TPM's model from the certificate's alternative name (TCG EK Credential Profile 3.2.9), or nothing."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ""
    for name in names.get_values_for_type(x509.DirectoryName):
        for attribute in name.get_attributes_for_oid(_MODEL):
            return str(attribute.value)
    return ""
