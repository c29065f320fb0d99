"""The delta codec: an old file and a list of operations make a new file, in bounded memory, whatever the delta says.

    header   magic, version, size and SHA-256 of the old file, size and SHA-256 of the new file
    COPY     bytes of the old file, as they are
    XOR      bytes of the old file, changed a little: the difference is stored by byte planes and compressed
    SPARSE   the same for few changes: the gaps between changed bytes, then the changes, in the order of the planes
    PATCH    compressed with a range of the old file as what came before
    LITERAL  compressed         RAW  as it is         END

XOR is for weights. One block of a quantised tensor is a row of bytes; writing the difference column by column (first
bytes, second bytes, ...) puts what is alike together. Gaps and changes apart, as in SPARSE, come close to the
entropy of the difference, which a compressor that looks for repeats does not. The maker of a delta knows about tensors;
this module does not: an operation only says how long its rows are.

Nothing is believed: every length is checked before anything of that length is read or made, decompression stops at the
length that was said, ranges must lie in the old file, and the result must have the digest that the caller demands.
`apply` yields as it goes, so whoever stores the result must not keep it until the iterator has ended by itself.
docs/reference/release-format.md has the bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from casemate.errors import UntrustedDataError
from casemate.formats import frames

MAGIC: Final = b"\x89CMDLTA\n"
VERSION: Final = 1
PIECE_LIMIT: Final = frames.BLOCK_LIMIT
"""The most bytes that one operation other than COPY makes."""
RANGE_LIMIT: Final = 1 << 24
"""The longest range of the old file that a PATCH leans on."""
SMALLEST_RANGE: Final = 8
ROW_LIMIT: Final = 1024
SIZE_LIMIT: Final = 1 << 40
_SLACK: Final = 1024  # a compressor's overhead on what does not compress
_COPY_STEP: Final = 1 << 20
_JUMP: Final = 255  # as a gap: go on by this many bytes, and no change there
_SPARSE_SHARE: Final = 4  # at most one byte in so many is changed

_HEADER: Final = struct.Struct(">8sH6xQ32sQ32s")
HEADER_BYTES: Final = _HEADER.size
_END, _COPY, _LITERAL, _RAW, _XOR, _PATCH, _SPARSE = range(7)
_FIELDS: Final = {
    _END: struct.Struct(">"),
    _COPY: struct.Struct(">QQ"),  # offset, length
    _LITERAL: struct.Struct(">II"),  # length, stored
    _RAW: struct.Struct(">I"),  # length
    _XOR: struct.Struct(">QIHI"),  # offset, length, row, stored
    _PATCH: struct.Struct(">QIII"),  # offset, range, length, stored
    _SPARSE: struct.Struct(">QIHIIII"),  # offset, length, row, gap bytes, changes, stored gaps, stored changes
}

Bytes = npt.NDArray[np.uint8]
ReadOld = Callable[[int, int], "bytes | bytearray | memoryview"]
"""(offset, length) -> exactly those bytes of the old file."""


class Identity(msgspec.Struct, frozen=True):
    """A plain file: its size, and its SHA-256 (32 bytes)."""

    size: int
    sha256: bytes


# --- making: what the release machine calls -------------------------------------------------------------------------


def header(base: Identity, new: Identity) -> bytes:
    """Begin a delta."""
    return _HEADER.pack(MAGIC, VERSION, base.size, base.sha256, new.size, new.sha256)


def end() -> bytes:
    """End a delta."""
    return _operation(_END)


def copy(offset: int, length: int) -> bytes:
    """Take *length* bytes of the old file at *offset*."""
    return _operation(_COPY, offset, length)


def literal(new: bytes, level: int) -> bytes:
    """Say *new* itself, compressed when that helps."""
    stored = frames.compress(new, level)
    if len(stored) + 4 >= len(new):
        return _operation(_RAW, len(new)) + new
    return _operation(_LITERAL, len(new), len(stored)) + stored


def xor(old: bytes, new: bytes, offset: int, row: int, level: int) -> bytes:
    """Say how *new* differs from *old*, as many bytes at *offset* of the old file, in rows of *row* bytes."""
    difference = np.frombuffer(old, np.uint8) ^ np.frombuffer(new, np.uint8)
    whole = len(difference) // row * row
    planes = np.concatenate([difference[:whole].reshape(-1, row).T.reshape(-1), difference[whole:]])
    changed = np.flatnonzero(planes)
    if 0 < len(changed) <= len(planes) // _SPARSE_SHARE:
        return _sparse(planes, changed, offset, row, level)
    stored = frames.compress(planes.tobytes(), level)
    return _operation(_XOR, offset, len(new), row, len(stored)) + stored


def _sparse(planes: Bytes, changed: npt.NDArray[np.intp], offset: int, row: int, level: int) -> bytes:
    jumps, rest = np.divmod(np.diff(changed, prepend=-1) - 1, _JUMP)
    gaps = np.full(len(changed) + int(jumps.sum()), _JUMP, np.uint8)
    gaps[np.cumsum(jumps + 1) - 1] = rest
    stored = frames.compress(gaps.tobytes(), level), frames.compress(planes[changed].tobytes(), level)
    sizes = map(len, stored)
    return _operation(_SPARSE, offset, len(planes), row, len(gaps), len(changed), *sizes) + b"".join(stored)


def patch(base: bytes, offset: int, new: bytes, level: int) -> bytes:
    """Say *new* with the help of *base*, which lies at *offset* of the old file."""
    stored = frames.compress_after(base, new, level)
    return _operation(_PATCH, offset, len(base), len(new), len(stored)) + stored


def _operation(code: int, *fields: int) -> bytes:
    return bytes([code]) + _FIELDS[code].pack(*fields)


# --- applying -------------------------------------------------------------------------------------------------------


def apply(
    delta: Iterable[bytes | bytearray | memoryview], read_old: ReadOld, *, base: Identity, new: Identity
) -> Iterator[bytes | bytearray | memoryview]:
    """Make the file *new* from the file *base* and *delta*; both identities come from who is trusted, not the delta.

    The header is checked before this returns; the pieces (at most `PIECE_LIMIT` bytes each) come one by one. The result
    is good only when the iterator ends without raising.

    Raises:
        UntrustedDataError: `delta-magic`, `delta-version`, `delta-base` (made against another file), `delta-target`;
            and while iterating `delta-truncated`, `delta-operation`, `delta-length`, `delta-range`,
            `delta-compression`, `delta-trailing-data`, `delta-result`.

    """
    reader = _Reader(delta)
    _check_header(reader, base, new)
    return _Applier(reader, read_old, base, new).run()


def _check_header(reader: _Reader, base: Identity, new: Identity) -> None:
    raw = reader.take(HEADER_BYTES)
    magic, version, base_size, base_digest, new_size, new_digest = _HEADER.unpack(raw)
    if magic != MAGIC:
        _refuse("delta-magic", "it is not a delta")
    if version != VERSION or any(raw[10:16]):
        _refuse("delta-version", f"format version {version} is not known to this casemate")
    if Identity(base_size, base_digest) != base:
        _refuse("delta-base", "it was made against another file than the one that is here")
    if Identity(new_size, new_digest) != new or not new.size <= SIZE_LIMIT:
        _refuse("delta-target", "it makes another file than the release names")


class _Reader:
    """The delta as a stream; holds one piece of it and what one operation needs."""

    def __init__(self, delta: Iterable[bytes | bytearray | memoryview]) -> None:
        self._pieces = iter(delta)
        self._held = memoryview(b"")

    def take(self, count: int) -> bytes:
        """Return the next *count* bytes: the caller has checked that this is a number it can afford."""
        if len(self._held) >= count:
            out, self._held = bytes(self._held[:count]), self._held[count:]
            return out
        parts = bytearray(self._held)
        while len(parts) < count:
            piece = memoryview(next(self._pieces, b""))
            if not piece.nbytes:
                _refuse("delta-truncated", "it ends early")
            needed = count - len(parts)
            parts += piece[:needed]
            self._held = piece[needed:]
        return bytes(parts)

    def expect_end(self) -> None:
        if len(self._held) or any(map(len, self._pieces)):
            _refuse("delta-trailing-data", "it goes on after its end")


class _Applier:
    """One run over the operations."""

    def __init__(self, reader: _Reader, read_old: ReadOld, base: Identity, new: Identity) -> None:
        self._reader = reader
        self._read_old = read_old
        self._base = base
        self._new = new
        self._left = new.size
        self._prefix: tuple[tuple[int, int], Any] | None = None  # the last range that a PATCH leaned on

    def run(self) -> Iterator[bytes | bytearray | memoryview]:
        """Yield the new file; raise when it is not the one that was asked for."""
        digest = hashlib.sha256()
        for piece in self._pieces():
            digest.update(piece)
            yield piece
        self._reader.expect_end()
        if self._left or digest.digest() != self._new.sha256:
            _refuse("delta-result", "what it makes is not the file that the release names")

    def _pieces(self) -> Iterator[bytes | bytearray | memoryview]:
        make: dict[int, Callable[..., bytes | memoryview]] = {
            _LITERAL: self._literal,
            _RAW: self._raw,
            _XOR: self._xor,
            _PATCH: self._patch,
            _SPARSE: self._sparse,
        }
        while (code := self._reader.take(1)[0]) != _END:
            if code not in _FIELDS:
                _refuse("delta-operation", f"operation {code} is not known")
            fields = _FIELDS[code].unpack(self._reader.take(_FIELDS[code].size))
            if code == _COPY:
                yield from self._copy(*fields)
            else:
                yield make[code](*fields)

    def _copy(self, offset: int, length: int) -> Iterator[bytes | bytearray | memoryview]:
        self._claim(length, self._left)
        self._check_range(offset, length)
        for at in range(offset, offset + length, _COPY_STEP):
            yield self._old(at, min(_COPY_STEP, offset + length - at))

    def _literal(self, length: int, stored: int) -> bytes:
        self._claim(length, PIECE_LIMIT)
        return self._decompress(length, stored)

    def _raw(self, length: int) -> bytes:
        self._claim(length, PIECE_LIMIT)
        return self._reader.take(length)

    def _xor(self, offset: int, length: int, row: int, stored: int) -> memoryview:
        self._claim(length, PIECE_LIMIT)
        self._check_range(offset, length)
        _check_row(row)
        planes = np.frombuffer(self._decompress(length, stored), np.uint8)
        whole = length // row * row
        out = np.empty(length, np.uint8)
        out[:whole].reshape(-1, row)[:] = planes[:whole].reshape(row, -1).T
        out[whole:] = planes[whole:]
        out ^= np.frombuffer(self._old(offset, length), np.uint8)
        return out.data

    def _sparse(self, *fields: int) -> memoryview:
        offset, length, row, gap_bytes, changes, stored_gaps, stored_changes = fields
        self._claim(length, PIECE_LIMIT)
        self._check_range(offset, length)
        _check_row(row)
        if not 1 <= changes <= max(1, length // _SPARSE_SHARE) or not changes <= gap_bytes <= changes + length // _JUMP:
            _refuse("delta-length", f"it has {changes} changes and {gap_bytes} gaps in {length} bytes")
        gaps = np.frombuffer(self._decompress(gap_bytes, stored_gaps), np.uint8)
        values = np.frombuffer(self._decompress(changes, stored_changes), np.uint8)
        is_change = gaps != _JUMP
        places = np.cumsum(gaps + is_change.astype(np.uint32), dtype=np.uint32)[is_change]
        if len(places) != changes or not is_change[-1] or places[-1] > length:
            _refuse("delta-length", "its changes lie outside of what it changes")
        out = np.frombuffer(self._old(offset, length), np.uint8).copy()
        out[_unplaned(places - np.uint32(1), length, row)] ^= values
        return out.data

    def _patch(self, offset: int, span: int, length: int, stored: int) -> bytes:
        self._claim(length, PIECE_LIMIT)
        if not SMALLEST_RANGE <= span <= RANGE_LIMIT:
            _refuse("delta-length", f"it leans on {span} bytes of the old file")
        self._check_range(offset, span)
        if self._prefix is None or self._prefix[0] != (offset, span):
            self._prefix = None  # never hold two
            self._prefix = (offset, span), frames.prefix(bytes(self._old(offset, span)))
        return self._decompress(length, stored, self._prefix[1])

    def _claim(self, length: int, limit: int) -> None:
        """Check what an operation says it makes before any of it is made."""
        if not 1 <= length <= min(limit, self._left):
            _refuse("delta-length", f"an operation makes {length} bytes")
        self._left -= length

    def _check_range(self, offset: int, length: int) -> None:
        if offset + length > self._base.size:
            _refuse("delta-range", "it reads beyond the end of the old file")

    def _old(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        data = self._read_old(offset, length)
        if len(data) != length:
            _refuse("delta-range", "the old file ends early")
        return data

    def _decompress(self, length: int, stored: int, prefix: Any = None) -> bytes:
        if not 1 <= stored <= length + _SLACK:
            _refuse("delta-length", f"it stores {length} bytes as {stored}")
        frame = self._reader.take(stored)
        try:
            return frames.decompress(frame, length, prefix)
        except frames.FrameError:
            _refuse("delta-compression", "a part of it does not decompress to what it says")


def _check_row(row: int) -> None:
    if not 1 <= row <= ROW_LIMIT:
        _refuse("delta-length", f"it has rows of {row} bytes")


def _unplaned(places: npt.NDArray[np.uint32], length: int, row: int) -> npt.NDArray[np.uint32]:
    """Turn places among byte planes into places in the file."""
    rows = np.uint32(length // row)
    if not rows:
        return places
    column, line = np.divmod(places, rows)
    return np.where(column < row, line * np.uint32(row) + column, places)


def _refuse(check: str, what: str) -> NoReturn:
    raise UntrustedDataError(
        f"the delta was refused: {what}", check=check, hint="the full payload is fetched instead; nothing was changed"
    )
