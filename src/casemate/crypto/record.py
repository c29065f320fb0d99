"""Sealing of many small records under keys that move forward and cannot be wound back.

`EpochKey` seals records with AES-256-GCM. The nonce is the epoch and the record's index, so a pair must never be used
twice under one key: a writer that is unsure takes `next()` or a fresh key. `next()` derives the following epoch's key
with HKDF-SHA256 and wipes this one: whoever takes a key from memory reads what follows, never what came before.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from casemate.crypto import kdf
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError

KEY_LENGTH: Final = 32
TAG_LENGTH: Final = 16
_NONCE = struct.Struct(">IQ")


class EpochKey:
    """The key of one epoch."""

    def __init__(self, epoch: int, root: Secret) -> None:
        """Own *root* (32 bytes) for *epoch* (u32)."""
        if len(root) != KEY_LENGTH:
            raise ValueError("an epoch key has 32 bytes")
        self.epoch = epoch
        self._root = root
        with kdf.derive(root, "record/aead") as key:
            self._cipher = AESGCM(key.view())

    @classmethod
    def generate(cls, epoch: int) -> EpochKey:
        """Make a fresh key for *epoch*."""
        return cls(epoch, Secret.random(KEY_LENGTH))

    def root(self) -> bytes:
        """Copy the key out, to be wrapped for its owner. Grep for this name in reviews."""
        return self._root.reveal()

    def seal(self, index: int, plain: bytes, context: bytes) -> bytes:
        """Encrypt *plain* as record *index* (u64), bound to *context*; adds `TAG_LENGTH` bytes."""
        return self._cipher.encrypt(_NONCE.pack(self.epoch, index), plain, context)

    def open(self, index: int, sealed: bytes, context: bytes) -> bytes:
        """Decrypt record *index*.

        Raises:
            UntrustedDataError: `record-tag` the record was altered, moved, or belongs to another key.

        """
        try:
            return self._cipher.decrypt(_NONCE.pack(self.epoch, index), sealed, context)
        except InvalidTag as error:
            raise UntrustedDataError(f"record {index} does not open", check="record-tag") from error

    def next(self) -> EpochKey:
        """Return the following epoch's key and wipe this one."""
        following = kdf.derive(self._root, "record/next")
        self._root.wipe()
        return EpochKey(self.epoch + 1, following)
