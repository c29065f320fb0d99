"""A fleet's certificate authority: a root that can go offline, an intermediate that issues, leaves of two kinds.

A leaf is a device's (client authentication, seven days, named by us) or a listener's (server authentication). Of a
request only the key is used: every name comes from the caller. Times are seconds since the epoch.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID

from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.crypto.x509 import common_name, key_usage, load, moment, unsigned
from casemate.errors import UntrustedDataError

MAX_CSR: Final = 16 * 1024
CURVES: Final = ("secp256r1", "secp384r1")
BACKDATE: Final = 1800
"""Seconds a certificate starts in the past: a board without a clock of its own is a little behind."""
_URN: Final = "urn:uuid:"


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What a certificate says. That it was issued by us is for the caller to establish."""

    serial: str
    """Lower-case hex."""
    not_before: float
    not_after: float
    device: str
    """The device's id, or "" when it is no device's."""


def make_root(key: EcKey, name: str, now: float, days: int) -> bytes:
    """Return a self-signed root (DER) under which one level of intermediates may stand."""
    subject, start = common_name(name), moment(now - BACKDATE)
    builder = (
        unsigned(subject, subject, key.public, start, start + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(key_usage(sign=False, issue=True), critical=True)
    )
    return builder.sign(key.key, _hash(key)).public_bytes(Encoding.DER)


@dataclasses.dataclass(frozen=True, slots=True)
class Issuer:
    """A key that issues, and its certificate (DER)."""

    key: EcKey
    certificate: bytes

    def intermediate(self, public: EcPublic, name: str, now: float, days: int) -> bytes:
        """Return an intermediate (DER) for *public*; it may issue leaves only. This issuer must be a root."""
        parent, start = load(self.certificate), moment(now - BACKDATE)
        end = min(start + dt.timedelta(days=days), parent.not_valid_after_utc)
        builder = (
            unsigned(common_name(name), parent.subject, public, start, end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(sign=False, issue=True), critical=True)
        )
        return self._sign(builder)

    def device(self, public: EcPublic, device: str, now: float, seconds: float) -> bytes:
        """Return the certificate (DER) of *device* (a UUID), valid for *seconds* from *now*."""
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_URN + device)])
        builder = self._leaf(public, device, now, seconds)
        return self._sign(_for(builder, ExtendedKeyUsageOID.CLIENT_AUTH, names))

    def server(self, public: EcPublic, names: Sequence[str], now: float, seconds: float) -> bytes:
        """Return a listener's certificate (DER) for *names* (host names and addresses)."""
        listed = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = self._leaf(public, names[0], now, seconds)
        return self._sign(_for(builder, ExtendedKeyUsageOID.SERVER_AUTH, listed))

    def _leaf(self, public: EcPublic, name: str, now: float, seconds: float) -> x509.CertificateBuilder:
        parent = load(self.certificate)
        end = min(moment(now + seconds), parent.not_valid_after_utc)  # never longer than its issuer
        return (
            unsigned(common_name(name[:64]), parent.subject, public, moment(now - BACKDATE), end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(sign=True, issue=False), critical=True)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        named = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public.key)
        builder = builder.add_extension(named, critical=False)
        return builder.sign(self.key.key, _hash(self.key)).public_bytes(Encoding.DER)


def parse_csr(body: bytes) -> EcPublic:
    """Return the key of a request, base64 (with or without PEM's lines) or DER; its names are not looked at.

    Raises:
        UntrustedDataError: `csr-size`, `csr-format`, `csr-key` (not P-256 or P-384), `csr-signature`.

    """
    if len(body) > MAX_CSR:
        raise UntrustedDataError("the certificate request is too large", check="csr-size")
    try:
        request = x509.load_der_x509_csr(_der(body))
        key, signed = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm) as error:
        raise UntrustedDataError("not a certificate request", check="csr-format") from error
    public = EcPublic.checked(key) if getattr(getattr(key, "curve", None), "name", "") in CURVES else None
    if public is None:
        raise UntrustedDataError("the key of a device is ECDSA on P-256 or P-384", check="csr-key")
    if not signed:
        raise UntrustedDataError("the request is not signed with its key", check="csr-signature")
    return public


def facts(certificate: bytes) -> Facts:
    """Read what *certificate* (DER) says.

    Raises:
        UntrustedDataError: `certificate-format`.

    """
    parsed = load(certificate)
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    except (ValueError, x509.DuplicateExtension) as error:
        raise UntrustedDataError("the certificate is malformed", check="certificate-format") from error
    device = uris[0].removeprefix(_URN) if len(uris) == 1 and uris[0].startswith(_URN) else ""
    start, end = parsed.not_valid_before_utc.timestamp(), parsed.not_valid_after_utc.timestamp()
    return Facts(format(parsed.serial_number, "x"), start, end, device)


def public_key(certificate: bytes) -> EcPublic:
    """Return the key of *certificate* (DER).

    Raises:
        UntrustedDataError: `certificate-format`, `ec-key`.

    """
    return EcPublic.checked(load(certificate).public_key())


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of *certificate* (DER) in lower-case hex."""
    return hashlib.sha256(certificate).hexdigest()


def certificates_only(certificates: Sequence[bytes]) -> bytes:
    """Return certificates as PKCS #7 certs-only (DER): how EST carries them (RFC 7030 4.1.3)."""
    return pkcs7.serialize_certificates([load(each) for each in certificates], Encoding.DER)


def _for(
    builder: x509.CertificateBuilder, purpose: x509.ObjectIdentifier, names: x509.SubjectAlternativeName
) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.add_extension(names, critical=False)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _der(body: bytes) -> bytes:
    """Return the request's DER: EST sends base64, and people send PEM."""
    if body[:1] == b"\x30":
        return body
    lines = [line for line in body.split() if line and not line.startswith(b"-----")]
    if body.lstrip().startswith(b"-----"):
        lines = [line for line in body.splitlines() if not line.startswith(b"-----")]
    return base64.b64decode(b"".join(line.strip() for line in lines), validate=True)


def _hash(key: EcKey) -> hashes.SHA256 | hashes.SHA384:
    return hashes.SHA384() if key.key.curve.name == "secp384r1" else hashes.SHA256()
