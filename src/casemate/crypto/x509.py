"""A private certificate authority of two levels: a root, and short-lived leaves that sign releases. No web PKI.

`verify_leaf` is deliberately narrower than RFC 5280: exactly one issuer, given by the caller; a leaf that may sign code
and nothing else; and the moment of signing, which the caller must have proven, inside the leaf's validity. Libraries
that take the leaf's own notBefore as "now" accept a key for ever once it was stolen.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.errors import UntrustedDataError

Kind = TypeVar("Kind", bound=x509.ExtensionType)

ROOT_DAYS: Final = 3650
_KNOWN: Final = {
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
    x509.SubjectKeyIdentifier.oid,
    x509.AuthorityKeyIdentifier.oid,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf that passed `verify_leaf`."""

    public: EcPublic
    subject: str
    not_before: int
    not_after: int


def make_root(key: EcKey, name: str, now: float) -> bytes:
    """Return a self-signed root certificate (DER) for *key*, valid for ten years from *now*."""
    subject = common_name(name)
    start = moment(now)
    builder = (
        unsigned(subject, subject, key.public, start, start + dt.timedelta(days=ROOT_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(sign=False, issue=True), critical=True)
    )
    return builder.sign(key.key, hashes.SHA384()).public_bytes(Encoding.DER)


def issue_leaf(
    issuer: EcKey, root: bytes, public: EcPublic, name: str, *, not_before: float, not_after: float
) -> bytes:
    """Return a code-signing leaf (DER) for *public*, valid between two moments (seconds since the epoch)."""
    parent = load(root)
    builder = (
        unsigned(common_name(name), parent.subject, public, moment(not_before), moment(not_after))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(sign=True, issue=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public.key), critical=False)
    )
    return builder.sign(issuer.key, hashes.SHA384()).public_bytes(Encoding.DER)


def verify_leaf(leaf: bytes, root: bytes, at: float) -> Leaf:
    """Check that *leaf* (DER) was issued by *root* (DER) for signing code and was valid at *at* (seconds).

    Raises:
        UntrustedDataError: `certificate-*`; the name says which rule.

    """
    child, parent = load(leaf), load(root)
    _check_authority(parent, at)
    try:
        child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):
        raise UntrustedDataError(
            "the signing certificate was not issued by the release authority", check="certificate-issuer"
        ) from None
    _check_purpose(child)
    start, end = child.not_valid_before_utc.timestamp(), child.not_valid_after_utc.timestamp()
    if not start <= at <= end:
        raise UntrustedDataError(
            "the signature was made while its certificate was not valid",
            check="certificate-validity",
            hint="sign the release again with a fresh certificate",
        )
    return Leaf(EcPublic.checked(child.public_key()), child.subject.rfc4514_string(), int(start), int(end))


def to_pem(certificate: bytes) -> str:
    """Return a DER certificate as PEM text."""
    return load(certificate).public_bytes(Encoding.PEM).decode("ascii")


def from_pem(text: str) -> bytes:
    """Return the one certificate of a PEM text as DER.

    Raises:
        UntrustedDataError: `certificate-format`.

    """
    try:
        return x509.load_pem_x509_certificate(text.encode("ascii")).public_bytes(Encoding.DER)
    except (ValueError, UnicodeEncodeError) as error:
        raise UntrustedDataError("not a PEM certificate", check="certificate-format") from error


def public_key(certificate: bytes) -> bytes:
    """Return the public key of a certificate (DER), as DER SubjectPublicKeyInfo: what a pin is the digest of.

    Raises:
        UntrustedDataError: `certificate-format`.

    """
    try:
        return load(certificate).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as error:
        raise UntrustedDataError("not a certificate", check="certificate-format") from error


def valid_from(certificate: bytes) -> int:
    """Return the second from which a certificate (DER) is valid.

    Raises:
        UntrustedDataError: `certificate-format`.

    """
    return int(load(certificate).not_valid_before_utc.timestamp())


def _check_authority(root: x509.Certificate, at: float) -> None:
    constraints = _extension(root, x509.BasicConstraints)
    usage = _extension(root, x509.KeyUsage)
    if not constraints.ca or not usage.key_cert_sign:
        raise UntrustedDataError("the root certificate may not issue others", check="certificate-authority")
    if not root.not_valid_before_utc.timestamp() <= at <= root.not_valid_after_utc.timestamp():
        raise UntrustedDataError("the release authority was not valid then", check="certificate-validity")


def _check_purpose(leaf: x509.Certificate) -> None:
    """Refuse a leaf made for anything but code signing: a server's certificate must not sign models."""
    try:
        unknown = [item for item in leaf.extensions if item.critical and item.oid not in _KNOWN]
    except (ValueError, x509.DuplicateExtension) as error:
        raise UntrustedDataError("the signing certificate is malformed", check="certificate-format") from error
    purposes = list(_extension(leaf, x509.ExtendedKeyUsage))
    usage = _extension(leaf, x509.KeyUsage)
    issues = _extension(leaf, x509.BasicConstraints, x509.BasicConstraints(ca=False, path_length=None)).ca
    if unknown or issues or not usage.digital_signature or purposes != [ExtendedKeyUsageOID.CODE_SIGNING]:
        raise UntrustedDataError(
            "the certificate is not one for signing code and nothing else", check="certificate-purpose"
        )


def _extension(certificate: x509.Certificate, kind: type[Kind], default: Kind | None = None) -> Kind:
    """Return the extension of *kind*; without a default its absence is a refusal."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        if default is not None:
            return default
    except (ValueError, x509.DuplicateExtension) as error:
        raise UntrustedDataError("the certificate is malformed", check="certificate-format") from error
    raise UntrustedDataError("the certificate does not say what it is for", check="certificate-purpose")


def load(der: bytes) -> x509.Certificate:
    """Read a certificate (DER).

    Raises:
        UntrustedDataError: `certificate-format`.

    """
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise UntrustedDataError("not a certificate", check="certificate-format") from error


def is_issued_by(certificate: bytes, issuer: bytes) -> bool:
    """Return whether *certificate* was signed with *issuer*'s key (both DER); dates are not looked at."""
    try:
        load(certificate).verify_directly_issued_by(load(issuer))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def unsigned(
    subject: x509.Name, issuer: x509.Name, public: EcPublic, start: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    """Return what every certificate of ours begins with: names, key, a random serial number, validity."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public.key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public.key), critical=False)
    )


def key_usage(*, sign: bool, issue: bool) -> x509.KeyUsage:
    """Return a key usage for signing, or for issuing certificates and revocation lists, and nothing else."""
    return x509.KeyUsage(
        digital_signature=sign,
        key_cert_sign=issue,
        crl_sign=issue,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def common_name(text: str) -> x509.Name:
    """Return a name of one part."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def moment(seconds: float) -> dt.datetime:
    """Return seconds since the epoch as X.509 writes time: whole, UTC."""
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC)
