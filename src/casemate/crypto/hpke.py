"""Sealing to a public key: HPKE base mode (RFC 9180), X25519 with HKDF-SHA256 and AES-256-GCM.

One message per encapsulation. HPKE's key schedule binds the caller's `info`, which here carries both the purpose and
the associated data, each with its length: a message opens only for the purpose and the context it was sealed for.
Base mode says nothing about who sealed it; callers that care authenticate the result themselves.
"""

from __future__ import annotations

from typing import Final

# X25519 imports the back end when it is first used, perhaps as a uid that may not read where all this is installed.
import cryptography.hazmat.backends.openssl.backend  # noqa: F401
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from casemate.crypto.aead import TagMismatch
from casemate.crypto.secret import Secret

PUBLIC_BYTES: Final = 32
PRIVATE_BYTES: Final = 32
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def generate() -> tuple[Secret, bytes]:
    """Make a key pair: the private key and the 32-byte public key."""
    private = Secret.random(PRIVATE_BYTES)
    return private, public_of(private)


def public_of(private: Secret) -> bytes:
    """Return the public key that belongs to *private*."""
    return X25519PrivateKey.from_private_bytes(private.view()).public_key().public_bytes_raw()


def seal(public: bytes, info: bytes, aad: bytes, plaintext: bytes | memoryview) -> bytes:
    """Seal *plaintext* to *public*; returns the encapsulation and the ciphertext.

    Raises:
        ValueError: *public* is not a usable X25519 key.

    """
    return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public), _bind(info, aad))


def open(private: Secret, info: bytes, aad: bytes, sealed: bytes) -> bytes:  # noqa: A001 - RFC 9180's own name
    """Open what `seal` made for this key, purpose and context.

    Raises:
        TagMismatch: another key, purpose or context, or changed bytes.

    """
    try:
        return _SUITE.decrypt(sealed, X25519PrivateKey.from_private_bytes(private.view()), _bind(info, aad))
    except (InvalidTag, ValueError):
        raise TagMismatch from None


def _bind(info: bytes, aad: bytes) -> bytes:
    return len(info).to_bytes(4, "big") + info + len(aad).to_bytes(4, "big") + aad
