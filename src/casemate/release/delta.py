"""Which bytes a device must fetch: for each file of a release the smallest of a delta, a compressed copy, the file.

Weights (GGUF, safetensors) are paired tensor by tensor, by name and type: where a tensor lies does not matter, so
inserted metadata costs what was inserted. What is equal becomes a copy; what changed a little, an XOR by byte planes;
the header and everything else leans on the range of the old file where it most likely was. Other files are patched
in windows. Nothing here holds more than a few windows, and the device never holds more than one.

Content-defined chunks are not among the candidates: they name what is equal, which a copy does for less, and give a
changed chunk in full, where XOR and windows give its difference (measured in benchmarks/bench_delta.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, Literal

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats import delta as codec
from casemate.formats import frames
from casemate.formats import manifest as fmt
from casemate.formats.delta import PIECE_LIMIT, RANGE_LIMIT, Identity
from casemate.formats.gguf import tensor_extents
from casemate.release.tensors import Tensor, safetensors_extents

LEVEL: Final = 3
"""Of compression. Differences of weights are close to noise: more effort finds little (see the benchmark)."""

_FILE_LEVEL: Final = 19  # of everything that is not weights
_VERSION: Final = re.compile(r"[-_.]?\b(?=[0-9a-f]*[0-9])[0-9a-f]{6,}|[-_.][0-9][0-9.]*")
_XOR_PIECE: Final = 1 << 20
_COMPARE: Final = 1 << 20
_RAW_LIMIT: Final = 256 << 20
"""Files up to here are tried as one compressed frame."""

_SMALL: Final = 64  # bytes: padding between tensors, not worth a search

Read = Callable[[int, int], bytes]
Spool = Callable[[], BinaryIO]
"""A fresh temporary file."""


class Source(msgspec.Struct, frozen=True):
    """A plain file: `read(offset, length)` gives exactly those bytes."""

    path: str
    read: Read
    size: int
    sha256: str

    @property
    def identity(self) -> Identity:
        """What the codec calls it."""
        return Identity(self.size, bytes.fromhex(self.sha256))


def describe(path: str, read: Read, size: int) -> Source:
    """Read the file once for its digest."""
    digest = hashlib.sha256()
    for at in range(0, size, _COMPARE):
        digest.update(read(at, min(_COMPARE, size - at)))
    return Source(path, read, size, digest.hexdigest())


def best_step(new: Source, old: Source | None, spool: Spool) -> tuple[fmt.Step, BinaryIO | None]:
    """Return how *new* is fetched with the fewest bytes, and those bytes (None when there are none)."""
    base = fmt.Base(old.path, old.size, old.sha256) if old else None
    if old and old.identity == new.identity:
        return fmt.Step(new.path, "same", 0, base), None
    candidates: list[tuple[Literal["zstd", "delta"], Iterable[bytes]]] = []
    if new.size <= _RAW_LIMIT and not tensors(new):
        candidates.append(("zstd", frames.compress_stream(whole(new), _FILE_LEVEL)))
    if old:
        candidates.append(("delta", make_delta(old, new)))
    codec_name: Literal["raw", "zstd", "delta"] = "raw"
    best, best_size = None, new.size
    for name, pieces in candidates:
        content, size = _spooled(pieces, spool)
        if size >= best_size:
            content.close()
            continue
        if best:
            best.close()
        codec_name, best, best_size = name, content, size
    if best is None:
        best, best_size = _spooled(whole(new), spool)
    return fmt.Step(new.path, codec_name, best_size, base if codec_name == "delta" else None), best


def pair(new: Iterable[Source], old: Iterable[Source]) -> dict[str, Source]:
    """Choose a base for each new file (by its path): same content, else same path, else file name, else its stem."""
    keys: tuple[Callable[[Source], str], ...] = (_digest, _path, _name, _stem)
    olds = [source for source in old if source.size]
    tables = [{key(source): source for source in reversed(olds)} for key in keys]
    found: dict[str, Source] = {}
    for source in new:
        bases = (table.get(key(source)) for key, table in zip(keys, tables, strict=True))
        base = next(filter(None, bases), None)
        if base:
            found[source.path] = base
    return found


def _digest(source: Source) -> str:
    return source.sha256


def _path(source: Source) -> str:
    return source.path


def _name(source: Source) -> str:
    return source.path.rpartition("/")[2]


def _stem(source: Source) -> str:
    """Return the name without versions and hashes: `libpng-2a828d05.so.16.44` becomes `libpng.so`."""
    return _VERSION.sub("", _name(source))


def whole(source: Source) -> Iterator[bytes]:
    """Yield the file itself."""
    for at in range(0, source.size, _COMPARE):
        yield source.read(at, min(_COMPARE, source.size - at))


def make_delta(old: Source, new: Source, level: int = LEVEL) -> Iterator[bytes]:
    """Yield the delta that makes *new* of *old*."""
    yield codec.header(old.identity, new.identity)
    yield from _merged(_Walk(old, new, level).operations())
    yield codec.end()


def tensors(source: Source) -> list[Tensor]:
    """Return where the tensors of a model file lie; nothing for any other file."""
    for look in (_gguf, safetensors_extents):
        try:
            return look(source.read, source.size)
        except UntrustedDataError:
            continue
    return []


def _gguf(read: Read, size: int) -> list[Tensor]:
    return [Tensor(row.name, row.offset, row.size, row.row_bytes) for row in tensor_extents(read, size)]


# --- operations -----------------------------------------------------------------------------------------------------


class _Copy(msgspec.Struct, frozen=True):
    offset: int
    length: int


def _merged(operations: Iterable[_Copy | bytes]) -> Iterator[bytes]:
    """Join copies that follow each other in the old file."""
    held: _Copy | None = None
    for operation in operations:
        if isinstance(operation, _Copy):
            if held and held.offset + held.length == operation.offset:
                held = _Copy(held.offset, held.length + operation.length)
                continue
            if held:
                yield codec.copy(held.offset, held.length)
            held = operation
            continue
        if held:
            yield codec.copy(held.offset, held.length)
            held = None
        yield operation
    if held:
        yield codec.copy(held.offset, held.length)


class _Walk:
    """One pass over the new file: tensors by their pair, what lies between by windows around the same place."""

    def __init__(self, old: Source, new: Source, level: int) -> None:
        self._old = old
        self._new = new
        self._level = level
        self._window: tuple[tuple[int, int], bytes] = ((0, 0), b"")  # the range of the old file last leaned on

    def operations(self) -> Iterator[_Copy | bytes]:
        """Yield what makes the new file, front to back."""
        bases = {(row.name, row.row_bytes): row for row in tensors(self._old)}
        at = base_at = 0  # how far each file is explained
        for row in tensors(self._new):
            base = bases.get((row.name, row.row_bytes))
            yield from self._between(at, row.offset, base_at, base.offset if base else base_at)
            at = row.offset
            if base:
                shared = min(row.size, base.size) // row.row_bytes * row.row_bytes
                yield from self._tensor(base.offset, row, shared)
                at, base_at = at + shared, base.offset + shared
            yield from self._literals(at, row.offset + row.size)
            at = row.offset + row.size
        yield from self._between(at, self._new.size, base_at, self._old.size)

    def _tensor(self, base_offset: int, row: Tensor, size: int) -> Iterator[_Copy | bytes]:
        """Explain the first *size* bytes of a tensor by those of its pair."""
        step = _XOR_PIECE // row.row_bytes * row.row_bytes
        for done in range(0, size, step):
            length, at = min(step, size - done), base_offset + done
            was, now = self._old.read(at, length), self._new.read(row.offset + done, length)
            if was == now:
                yield _Copy(at, length)
                continue
            difference = codec.xor(was, now, at, row.row_bytes, self._level)
            pays = len(difference) < length * 9 // 10
            yield difference if pays else min(difference, codec.literal(now, self._level), key=len)

    def _literals(self, start: int, stop: int) -> Iterator[bytes]:
        for at in range(start, stop, PIECE_LIMIT):
            yield codec.literal(self._new.read(at, min(PIECE_LIMIT, stop - at)), self._level)

    def _between(self, start: int, stop: int, base_start: int, base_stop: int) -> Iterator[_Copy | bytes]:
        """Explain new[start:stop] by what lies at the same relative place of old[base_start:base_stop]."""
        length, span = stop - start, base_stop - base_start
        if 0 < length <= _SMALL:
            yield self._padding(start, length, base_start)
        elif span < codec.SMALLEST_RANGE:
            yield from self._literals(start, stop)
        else:
            for at in range(start, stop, PIECE_LIMIT):
                piece = self._new.read(at, min(PIECE_LIMIT, stop - at))
                yield self._patch(piece, _window((at - start) * span // length, len(piece), base_start, span))

    def _patch(self, piece: bytes, where: tuple[int, int]) -> _Copy | bytes:
        if self._window[0] != where:
            self._window = (where, self._old.read(*where))
        base = self._window[1]
        same = base.find(piece)
        if same >= 0:
            return _Copy(where[0] + same, len(piece))
        return min(codec.patch(base, where[0], piece, _FILE_LEVEL), codec.literal(piece, _FILE_LEVEL), key=len)

    def _padding(self, start: int, length: int, base_start: int) -> _Copy | bytes:
        """Continue a copy over padding when the old file has the same bytes there."""
        piece = self._new.read(start, length)
        if base_start + length <= self._old.size and self._old.read(base_start, length) == piece:
            return _Copy(base_start, length)
        return codec.literal(piece, self._level)


def _window(centre: int, length: int, base_start: int, span: int) -> tuple[int, int]:
    """Return (offset, length) of the range of the old file around *centre*."""
    size = min(RANGE_LIMIT, span)
    offset = min(max(0, centre + length // 2 - size // 2), span - size)
    return base_start + offset, size


# --- spooling -------------------------------------------------------------------------------------------------------


def _spooled(pieces: Iterable[bytes], spool: Spool) -> tuple[BinaryIO, int]:
    content = spool()
    for piece in pieces:
        content.write(piece)
    size = content.tell()
    content.seek(0)
    return content, size
