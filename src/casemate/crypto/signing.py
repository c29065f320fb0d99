"""Ed25519 signatures (RFC 8032) with keys kept in `Secret`."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from casemate.crypto import kdf
from casemate.crypto.secret import Secret

SEED_LENGTH: Final = 32
PUBLIC_LENGTH: Final = 32
SIGNATURE_LENGTH: Final = 64


class SigningKey:
    """An Ed25519 private key, made from its 32-byte seed."""

    def __init__(self, seed: Secret) -> None:
        """Use *seed* (32 bytes); it stays owned by the caller and must outlive `derive`."""
        if len(seed) != SEED_LENGTH:
            raise ValueError("an Ed25519 seed has 32 bytes")
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed.reveal())
        self.public: bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a fresh key."""
        return cls(Secret.random(SEED_LENGTH))

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of *message*."""
        return self._key.sign(message)

    def seed(self) -> bytes:
        """Copy the seed out, to be stored. Grep for this name in reviews."""
        return self._seed.reveal()

    def derive(self, label: str) -> Secret:
        """Return a 32-byte key for another purpose, bound to this key and *label*."""
        return kdf.derive(self._seed, label)


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Return whether *signature* over *message* was made with the private half of *public* (32 bytes)."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
