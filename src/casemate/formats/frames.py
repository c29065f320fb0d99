"""Zstandard frames, bounded: a frame never gets more memory than we say, nor makes more bytes than it was meant to.

Blocks are small and whole in memory (parts of a delta). Streams are whole files; their window is small enough for a
small device. The only module that imports zstd: Python's own from 3.14 on, the same code as a package before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

from casemate.errors import UntrustedDataError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK_LIMIT: Final = 1 << 21
BLOCK_WINDOW_LOG: Final = 21
STREAM_WINDOW_LOG: Final = 23
_STEP: Final = 1 << 20
_LONG_WINDOW_LOG: Final = 25  # lets a block reach all of its prefix; a block of known size still asks for its own only


class FrameError(Exception):
    """It does not decompress to what was said."""


def prefix(data: bytes) -> Any:
    """Return *data* as what came before a block."""
    return zstd.ZstdDict(data, is_raw=True).as_prefix


def compress(data: bytes, level: int) -> bytes:
    """Compress one block."""
    return zstd.compress(data, level)


def compress_after(before: bytes, data: bytes, level: int) -> bytes:
    """Compress one block that leans on *before*."""
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {
        parameter.compression_level: level,
        parameter.enable_long_distance_matching: 1,
        parameter.window_log: _LONG_WINDOW_LOG,
    }
    return zstd.compress(data, options=options, zstd_dict=prefix(before))


def decompress(frame: bytes, length: int, before: Any = None) -> bytes:
    """Decompress one block of exactly *length* bytes; *before* is what `prefix` returned.

    Raises:
        FrameError: it is not one whole frame of that length.

    """
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: BLOCK_WINDOW_LOG}
    decompressor = zstd.ZstdDecompressor(zstd_dict=before, options=options)
    try:
        out = decompressor.decompress(frame, max_length=length + 1)
    except zstd.ZstdError as error:
        raise FrameError from error
    if len(out) != length or not decompressor.eof or decompressor.unused_data:
        raise FrameError
    return out


def compress_stream(pieces: Iterable[bytes], level: int) -> Iterator[bytes]:
    """Compress a whole file into one frame."""
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {parameter.compression_level: level, parameter.window_log: STREAM_WINDOW_LOG}
    compressor = zstd.ZstdCompressor(options=options)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def decompress_stream(pieces: Iterable[bytes | bytearray | memoryview], size: int) -> Iterator[bytes]:
    """Decompress a frame of *size* bytes piece by piece; the caller checks the digest.

    Raises:
        UntrustedDataError: `zstd`: it is not one whole frame of that size.

    """
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: STREAM_WINDOW_LOG}
    decompressor = zstd.ZstdDecompressor(options=options)
    made = 0
    try:
        for piece in pieces:
            data: bytes | bytearray | memoryview = piece
            while len(data) or not (decompressor.needs_input or decompressor.eof):
                if decompressor.eof:
                    raise _refusal("it goes on after its end")
                out = decompressor.decompress(data, max_length=_STEP)
                data, made = b"", made + len(out)
                if made > size:
                    raise _refusal("it is longer than it says")
                yield out
    except zstd.ZstdError as error:
        raise _refusal("it does not decompress") from error
    if made != size or not decompressor.eof or decompressor.unused_data:
        raise _refusal("it is shorter than it says")


def _refusal(what: str) -> UntrustedDataError:
    return UntrustedDataError(f"a compressed file was refused: {what}", check="zstd", hint="fetch it again")
