"""How a release's bytes are sealed for transport: cut into chunks, each encrypted and addressed by its ciphertext.

One content key per release. Every payload (and the sealed part of the manifest) has its own key, derived from the
content key and the payload's id; the id is a keyed digest of the payload's plaintext. So two different plaintexts never
meet one key and nonce, even when a release is built again, and the same input gives the same bytes; whoever lacks the
content key learns nothing from an id. Chunk *i* has the STREAM nonce of `crypto.aead`: it cannot be moved, dropped or
cut off. See docs/reference/release-format.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

from casemate.crypto import kdf
from casemate.crypto.aead import PREFIX_BYTES, TAG_BYTES, Algorithm, Stream, TagMismatch
from casemate.crypto.secret import Secret
from casemate.errors import UntrustedDataError

CHUNK_BYTES: Final = 1 << 20
SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + TAG_BYTES
ID_BYTES: Final = 16


def keyed_id(content_key: Secret, label: str, *parts: bytes) -> str:
    """Return 32 hex digits that name *parts*, and tell nothing to whoever lacks the content key."""
    with kdf.derive(content_key, label) as key:
        return kdf.mac(key, *parts)[:ID_BYTES].hex()


def release_id(content_key: Secret, *, kind: str, name: str, version: str, files: Iterable[tuple[str, str]]) -> str:
    """Name a release by its content: *files* are (path, hex SHA-256 of the plain file)."""
    listed = b"".join(f"{digest} {path}\n".encode() for path, digest in sorted(files))
    return keyed_id(content_key, "release-id", kind.encode(), name.encode(), version.encode(), listed)


def payload_id(content_key: Secret, release: str, sha256: bytes, base_release: str = "") -> str:
    """Name a payload of *release* whose plaintext stream has the digest *sha256*; a delta is named with its base.

    Deltas against two bases may be the same stream, when only a file changed that both bases have.
    """
    base = [bytes.fromhex(base_release)] if base_release else []
    return keyed_id(content_key, "release-payload-id", bytes.fromhex(release), sha256, *base)


class PayloadCipher:
    """Seals and opens the chunks of one payload."""

    def __init__(self, content_key: Secret, release: str, payload: str) -> None:
        """Derive the key of *payload* (its id) of *release* (its id)."""
        named = bytes.fromhex(release) + bytes.fromhex(payload)
        key = kdf.derive(content_key, "release-payload", named)
        associated = hashlib.sha256(b"casemate/1/release-payload\0" + named).digest()
        self._stream = Stream(Algorithm.AES_256_GCM, key, bytes(PREFIX_BYTES), associated)

    def seal(self, index: int, plain: bytes | memoryview, *, last: bool) -> bytes:
        """Seal chunk *index*."""
        out = bytearray(len(plain) + TAG_BYTES)
        self._stream.seal_into(index, memoryview(plain), memoryview(out), last=last)
        return bytes(out)

    def open(self, index: int, sealed: bytes | bytearray | memoryview, *, last: bool) -> bytearray:
        """Open chunk *index*.

        Raises:
            UntrustedDataError: `payload-chunk`: changed, moved, or sealed for another payload or release.

        """
        if len(sealed) < TAG_BYTES:
            raise _refusal(index)
        out = bytearray(len(sealed) - TAG_BYTES)
        try:
            self._stream.open_into(index, memoryview(sealed), memoryview(out), last=last)
        except TagMismatch:
            raise _refusal(index) from None
        return out


def _refusal(index: int) -> UntrustedDataError:
    return UntrustedDataError(
        f"chunk {index} of the release does not open with its key",
        check="payload-chunk",
        hint="it was changed, or the grant is for another release: fetch it again",
    )


def cut(stream: Iterable[bytes | memoryview]) -> Iterator[tuple[bytes, bool]]:
    """Cut *stream* into (chunk, is it the last): all of `CHUNK_BYTES` but the last, which is never empty unless alone.

    At most two chunks are held.
    """
    held = bytearray()
    for piece in stream:
        held += piece
        while len(held) > CHUNK_BYTES:
            yield bytes(held[:CHUNK_BYTES]), False
            del held[:CHUNK_BYTES]
    yield bytes(held), True
