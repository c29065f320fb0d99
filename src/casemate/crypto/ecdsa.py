"""ECDSA on P-256 and P-384 (FIPS 186-5): what X.509 certificates and OpenSSF model signatures are made with.

The hash belongs to the curve (SHA-256, SHA-384, SHA-512), signatures are DER. Signing is deterministic (RFC 6979): no
random number can leak the key, and the same input gives the same bytes. P-521 is verified but never generated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


class Curve(Enum):
    """The curves keys are made on."""

    P256 = "secp256r1"
    P384 = "secp384r1"


class EcPublic:
    """A public key on one of the three curves."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        """Wrap *key*; `load` and `EcKey.public` make these."""
        self.key = key

    @classmethod
    def load(cls, data: bytes) -> EcPublic:
        """Read a SubjectPublicKeyInfo, PEM or DER.

        Raises:
            UntrustedDataError: `ec-key` not a key on P-256, P-384 or P-521.

        """
        try:
            key = load_pem_public_key(data) if data.lstrip().startswith(b"-----") else load_der_public_key(data)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UntrustedDataError("not a public key", check="ec-key") from error
        return cls.checked(key)

    @classmethod
    def checked(cls, key: object) -> EcPublic:
        """Accept *key* when it is on a known curve.

        Raises:
            UntrustedDataError: `ec-key`.

        """
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
            raise UntrustedDataError("the public key is not ECDSA on P-256, P-384 or P-521", check="ec-key")
        return cls(key)

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether *signature* (DER) over *message* was made with the private half."""
        try:
            self.key.verify(signature, message, ec.ECDSA(_HASHES[self.key.curve.name]))
        except InvalidSignature:
            return False
        return True

    def verify_raw(self, signature: bytes, message: bytes) -> bool:
        """As `verify`, with *signature* as r and s side by side, each as wide as the curve (RFC 7518, 3.4)."""
        width = (self.key.curve.key_size + 7) // 8
        if len(signature) != 2 * width:
            return False
        r, s = int.from_bytes(signature[:width], "big"), int.from_bytes(signature[width:], "big")
        return self.verify(utils.encode_dss_signature(r, s), message)

    def der(self) -> bytes:
        """Return the SubjectPublicKeyInfo."""
        return self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def pem(self) -> bytes:
        """Return the SubjectPublicKeyInfo as PEM text."""
        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def hint(self) -> str:
        """Return how a model signature names this key: SHA-256 of its PEM text, in hex."""
        return hashlib.sha256(self.pem()).hexdigest()


class EcKey:
    """A private key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Wrap *key*; `generate` and `load` make these."""
        self.key = key
        self.public = EcPublic(key.public_key())

    @classmethod
    def generate(cls, curve: Curve = Curve.P256) -> EcKey:
        """Make a fresh key."""
        return cls(ec.generate_private_key(ec.SECP256R1() if curve is Curve.P256 else ec.SECP384R1()))

    @classmethod
    def load(cls, secret: Secret) -> EcKey:
        """Read what `store` wrote.

        Raises:
            UntrustedDataError: `ec-key`.

        """
        return cls._checked(load_der_private_key, secret.reveal())

    @classmethod
    def load_pem(cls, data: bytes) -> EcKey:
        """Read what `pem` returned.

        Raises:
            UntrustedDataError: `ec-key`.

        """
        return cls._checked(load_pem_private_key, data)

    @classmethod
    def _checked(cls, load: Callable[..., object], data: bytes) -> EcKey:
        try:
            key = load(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UntrustedDataError("not a private key", check="ec-key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
            raise UntrustedDataError("the private key is not ECDSA on a known curve", check="ec-key")
        return cls(key)

    def store(self) -> Secret:
        """Return the key as PKCS #8, to be encrypted by the caller."""
        return Secret(self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))

    def pem(self) -> bytes:
        """Return the key as PEM text in clear, for a TLS library that insists on a file."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature of *message*."""
        algorithm = _HASHES[self.key.curve.name]
        return self.key.sign(message, ec.ECDSA(algorithm, deterministic_signing=True))

    def sign_raw(self, message: bytes) -> bytes:
        """As `sign`, with r and s side by side (RFC 7518, 3.4)."""
        width = (self.key.curve.key_size + 7) // 8
        r, s = utils.decode_dss_signature(self.sign(message))
        return r.to_bytes(width, "big") + s.to_bytes(width, "big")
