"""The files of a release that is not a model, out of its decrypted payload: as they are, unpacked, or as differences.

What is yielded is proven by whoever writes it (`staging`): here nothing is believed about digests of the result.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from casemate.device.update.staging import read_bounded
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import delta, frames
from casemate.formats.delta import Identity
from casemate.formats.manifest import Base, File, SealedPart, Step

_PIECE: Final = 1 << 20
BASE_LIMIT: Final = 1 << 30
Pieces = Callable[[], Iterator[bytes]]


def files(part: SealedPart, payload: str, plain: int, base: Path | None) -> Mapping[str, Iterable[bytes]]:
    """Return the pieces of every file of *part*, by its path; *plain* is the payload's plaintext, a descriptor.

    *base* is the directory of the files that a difference is made from.

    Raises:
        UntrustedDataError: while iterating: `delta-...`, `zstd`, `delta-base`: another file is there.
        OperationError: there is no base.

    """
    made: dict[str, Iterable[bytes]] = {}
    offset = 0
    for step, file in zip(part.plan(payload).steps, part.files, strict=True):
        made[step.path] = _file(step, file, functools.partial(_range, plain, offset, step.bytes), base)
        offset += step.bytes
    return made


def prove(part: SealedPart, payload: str, plain: int, base: Path | None) -> None:
    """Make every file once, for nothing but its digest.

    Raises:
        UntrustedDataError: `release-digest`, and as `files`.

    """
    made = files(part, payload, plain, base)
    for file in part.files:
        digest = hashlib.sha256()
        for piece in made[file.path]:
            digest.update(piece)
        if digest.hexdigest() != file.sha256:
            raise UntrustedDataError(f"the payload does not make {file.path}", check="release-digest")


def _file(step: Step, file: File, pieces: Pieces, base: Path | None) -> Iterator[bytes]:
    if step.base is not None:
        yield from _from_base(step, step.base, file, pieces, base)
    elif step.codec == "zstd":
        yield from map(bytes, frames.decompress_stream(pieces(), file.size))
    else:
        yield from pieces()


def _from_base(step: Step, named: Base, file: File, pieces: Pieces, base: Path | None) -> Iterator[bytes]:
    if base is None:
        raise OperationError("the payload is a difference and there is nothing to take it from", hint="this is a bug")
    try:
        old = read_bounded(base / named.path, min(named.size, BASE_LIMIT))
    except FileNotFoundError:
        raise UntrustedDataError(f"{named.path} of the base is gone", check="delta-base") from None
    if step.codec == "same":
        yield old
        return
    was, new = _identity(named), _identity(file)
    yield from map(bytes, delta.apply(pieces(), lambda at, size: old[at : at + size], base=was, new=new))


def _identity(file: File | Base) -> Identity:
    return Identity(file.size, bytes.fromhex(file.sha256))


def _range(fd: int, offset: int, size: int) -> Iterator[bytes]:
    end = offset + size
    while offset < end:
        piece = os.pread(fd, min(_PIECE, end - offset), offset)
        if not piece:
            raise OperationError("the decrypted payload ended early", hint="apply the update again")
        offset += len(piece)
        yield piece
