"""Authenticated encryption: key wrapping, and the chunk stream of containers.

`Stream` is STREAM (Hoang, Reyhanitabar, Rogaway, Vizar 2015): chunk *i* has the nonce `prefix(7) | u32 i | last(1)`, so
chunks cannot be reordered, dropped, duplicated or cut off, and any chunk can be opened alone. The associated data is
the digest of the container's header. A key encrypts one file, ever; the nonce therefore never repeats under a key.

`wrap` is for keys: a random 96-bit nonce under a key that wraps a handful of values.
"""

from __future__ import annotations

import functools
import os
from enum import IntEnum
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from casemate.crypto.secret import Secret

TAG_BYTES: Final = 16
PREFIX_BYTES: Final = 7
MAX_CHUNKS: Final = 1 << 32
_NONCE_BYTES: Final = 12


class TagMismatch(Exception):  # noqa: N818 - the one thing that can happen: the caller says what it means
    """The tag does not fit: another key, other associated data, or changed bytes. Nothing was released."""


class Algorithm(IntEnum):
    """What encrypts chunks. The numbers are in files."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2


@functools.cache
def preferred_algorithm(cpuinfo: Path = Path("/proc/cpuinfo")) -> Algorithm:
    """Return AES-256-GCM where the CPU has AES instructions (x86 and arm64 both say `aes`), else ChaCha20-Poly1305.

    Without them AES is several times slower and hard to do in constant time.
    """
    try:
        with cpuinfo.open(encoding="ascii", errors="replace") as file:
            for line in file:
                field, _, value = line.partition(":")
                if field.strip() in {"flags", "Features"}:
                    return Algorithm.AES_256_GCM if "aes" in value.split() else Algorithm.CHACHA20_POLY1305
    except OSError:
        pass  # no /proc: the choice that is safe everywhere
    return Algorithm.CHACHA20_POLY1305


def wrap(key: Secret, plaintext: Secret, context: bytes) -> bytes:
    """Encrypt a key under *key*, bound to *context*; returns nonce, ciphertext and tag (AES-256-GCM)."""
    nonce = os.urandom(_NONCE_BYTES)
    out = bytearray(len(plaintext) + TAG_BYTES)
    AESGCM(key.view()).encrypt_into(nonce, plaintext.view(), context, out)
    return nonce + bytes(out)


def unwrap(key: Secret, wrapped: bytes, context: bytes) -> Secret:
    """Decrypt what `wrap` made, straight into locked memory.

    Raises:
        TagMismatch: not wrapped by *key* for *context*.

    """
    length = len(wrapped) - _NONCE_BYTES - TAG_BYTES
    if length <= 0:
        raise TagMismatch
    out = Secret(bytes(length))
    try:
        AESGCM(key.view()).decrypt_into(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context, out.view())
    except InvalidTag:
        raise TagMismatch from None
    return out


class Stream:
    """Chunks of one file under one key. Stateless between chunks: open them in any order."""

    def __init__(self, algorithm: Algorithm, key: Secret, prefix: bytes, associated: bytes) -> None:
        """Take over *key* (32 bytes); the nonce *prefix* is 7 bytes, *associated* is the header digest."""
        if len(prefix) != PREFIX_BYTES:
            raise ValueError("the nonce prefix has 7 bytes")
        self._cipher: AESGCM | ChaCha20Poly1305 = (
            AESGCM(key.view()) if algorithm is Algorithm.AES_256_GCM else ChaCha20Poly1305(key.view())
        )
        self._key = key  # owned: the cipher may refer to these bytes instead of copying them
        self._prefix = prefix
        self._associated = associated

    def _nonce(self, index: int, last: bool) -> bytes:  # noqa: FBT001 - part of the nonce, not a switch
        return self._prefix + index.to_bytes(4, "big") + (b"\1" if last else b"\0")

    def seal_into(self, index: int, plain: memoryview, out: memoryview, *, last: bool) -> None:
        """Encrypt chunk *index* into *out*, which is 16 bytes longer than *plain*."""
        self._cipher.encrypt_into(self._nonce(index, last), plain, self._associated, out)

    def open_into(self, index: int, sealed: memoryview, out: memoryview, *, last: bool) -> None:
        """Verify and decrypt chunk *index* into *out*, 16 bytes shorter than *sealed*.

        *out* must be private memory: the cipher may write to it before the tag is known to be good.

        Raises:
            TagMismatch: do not use *out*.

        """
        try:
            self._cipher.decrypt_into(self._nonce(index, last), sealed, self._associated, out)
        except InvalidTag:
            raise TagMismatch from None
