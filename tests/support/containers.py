"""Small containers in memory, and reading one back the way the vault does."""

from __future__ import annotations

import hashlib
import os

from casemate.crypto.aead import TAG_BYTES, Algorithm
from casemate.crypto.secret import Secret
from casemate.formats import container as fmt
from casemate.formats import gguf
from support import gguf_files

CHUNK = fmt.SMALLEST_CHUNK
_TINY = gguf_files.tiny()
FACTS = gguf.check_header(lambda offset, length: _TINY[offset : offset + length], len(_TINY)).facts


def labels(plain: bytes, name: str = "tiny") -> fmt.Labels:
    return fmt.Labels(
        name=name,
        digest="sha256:" + hashlib.sha256(plain).hexdigest(),
        licence="Apache-2.0",
        added=1_700_000_000,
        facts=FACTS,
    )


def slot(mark: bytes = b"w") -> fmt.HomeSlot:
    return fmt.HomeSlot(key="00" * 8, wrapped=mark * 60)


def make(
    plain: bytes, key: Secret, *, name: str = "tiny", algorithm: Algorithm = Algorithm.AES_256_GCM, security: int = 0
) -> bytes:
    """Return a whole container with chunks of 4 KiB."""
    header = fmt.new_header(
        plain_size=len(plain),
        algorithm=algorithm,
        entropy=os.urandom(23),
        chunk_size=CHUNK,
        security_version=security,
    )
    stream = fmt.writing_stream(header, key)
    out = bytearray(header.raw)
    out += fmt.seal_area(header, fmt.SlotArea(slots=(slot(),), labels=labels(plain, name)), key)
    for index in range(header.chunks):
        span = header.chunk(index)
        sealed = bytearray(span.sealed_size)
        piece = memoryview(plain)[span.plain_offset : span.plain_offset + span.plain_size]
        stream.seal_into(index, piece, memoryview(sealed), last=span.last)
        out += sealed
    assert len(out) == header.file_size
    return bytes(out)


def read(data: bytes, key: Secret) -> bytes:
    """Parse, verify, open every chunk; whatever is wrong raises."""
    verified = fmt.verify(fmt.parse(data[: fmt.HEAD_BYTES], len(data)), key)
    out = bytearray(verified.header.plain_size)
    for index in range(verified.header.chunks):
        span = verified.header.chunk(index)
        sealed = memoryview(data)[span.offset : span.offset + span.sealed_size]
        piece = memoryview(out)[span.plain_offset : span.plain_offset + span.plain_size]
        fmt.open_chunk(verified, index, sealed, piece)
    return bytes(out)


def chunk_of(data: bytes, index: int) -> slice:
    """Return where chunk *index* lies."""
    start = fmt.HEAD_BYTES + index * (CHUNK + TAG_BYTES)
    return slice(start, min(start + CHUNK + TAG_BYTES, len(data)))
