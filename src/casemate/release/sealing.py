"""From plain files to what is published: one payload stream per base, cut, sealed and addressed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO, Final

from casemate.crypto.secret import Secret
from casemate.formats import payload as sealing
from casemate.formats.manifest import ChunkRef, Payload, Plan
from casemate.release.delta import Source, Spool, best_step

_STEP: Final = 1 << 20
Put = Callable[[str, bytes], None]
"""Keep a sealed chunk under its hex SHA-256."""


def make_payload(
    content_key: Secret,
    release: str,
    files: Sequence[Source],
    *,
    spool: Spool,
    put: Put,
    base_release: str = "",
    bases: Mapping[str, Source] | None = None,
) -> tuple[Payload, Plan]:
    """Make the payload that turns *base_release* (its files by the path of the new one: *bases*) into *files*.

    Without a base it is the full payload. *files* are in the order of the sealed part: sorted by path.
    """
    with contextlib.ExitStack() as held:
        rows = [best_step(file, (bases or {}).get(file.path), spool) for file in files]
        contents = [content for _, content in rows if content is not None]
        for content in contents:
            held.callback(content.close)
        payload = seal_payload(content_key, release, contents, put=put, base_release=base_release)
    return payload, Plan(payload.id, tuple(step for step, _ in rows))


def seal_payload(
    content_key: Secret, release: str, contents: Sequence[BinaryIO], *, put: Put, base_release: str = ""
) -> Payload:
    """Seal the concatenation of *contents*; they are read twice, first for the digest that names the payload."""
    digest, size = hashlib.sha256(), 0
    for piece in _stream(contents):
        digest.update(piece)
        size += len(piece)
    name = sealing.payload_id(content_key, release, digest.digest(), base_release)
    cipher = sealing.PayloadCipher(content_key, release, name)
    refs = []
    for index, (chunk, last) in enumerate(sealing.cut(_stream(contents))):
        sealed = cipher.seal(index, chunk, last=last)
        address = hashlib.sha256(sealed).hexdigest()
        put(address, sealed)
        refs.append(ChunkRef(address, len(sealed)))
    return Payload(name, "delta" if base_release else "full", base_release, size, tuple(refs))


def _stream(contents: Sequence[BinaryIO]) -> Iterator[bytes]:
    for content in contents:
        content.seek(0)
        while piece := content.read(_STEP):
            yield piece
