"""Where tiles and entry bundles stand and what is in them (C2SP tlog-tiles 0.1).

A full tile holds 256 hashes, a bundle 256 entries. The last tile of a level may be partial: its width is part of its
path. Paths are relative to the log's directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from casemate.errors import UntrustedDataError
from casemate.formats.tlog.hashes import HASH_SIZE, TILE_WIDTH

MAX_ENTRY: Final = 65_535
FULL_TILE_BYTES: Final = TILE_WIDTH * HASH_SIZE


def index_path(index: int) -> str:
    """Return *index* in groups of three digits, all but the last marked: 1234067 -> x001/x234/067."""
    groups = [f"{index % 1000:03d}"]
    while index >= 1000:  # noqa: PLR2004 - three digits a group
        index //= 1000
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups))


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """Return the path of the tile *index* at *level* with *width* hashes."""
    return f"tile/{level}/{index_path(index)}{_partial(width)}"


def entries_path(index: int, width: int = TILE_WIDTH) -> str:
    """Return the path of the entry bundle *index* with *width* entries."""
    return f"tile/entries/{index_path(index)}{_partial(width)}"


def _partial(width: int) -> str:
    return "" if width == TILE_WIDTH else f".p/{width}"


def partial_tiles(size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (level, index, width) of every partial tile a tree of *size* has."""
    level, count = 0, size
    while count:
        if count % TILE_WIDTH:
            yield level, count // TILE_WIDTH, count % TILE_WIDTH
        count //= TILE_WIDTH
        level += 1


def pack_tile(hashes: Sequence[bytes]) -> bytes:
    """Return a tile's bytes."""
    return b"".join(hashes)


def parse_tile(data: bytes, width: int) -> list[bytes]:
    """Return the first *width* hashes of a tile.

    Raises:
        UntrustedDataError: `tile-size` it has not that many, or a broken length.

    """
    if len(data) % HASH_SIZE or not width * HASH_SIZE <= len(data) <= FULL_TILE_BYTES:
        raise UntrustedDataError(f"a tile of {len(data)} bytes does not hold {width} hashes", check="tile-size")
    return [data[start : start + HASH_SIZE] for start in range(0, width * HASH_SIZE, HASH_SIZE)]


def pack_bundle(entries: Iterable[bytes]) -> bytes:
    """Return entries as a bundle: each behind its big-endian u16 length.

    Raises:
        ValueError: an entry is over `MAX_ENTRY` bytes.

    """
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > MAX_ENTRY:
            raise ValueError(f"an entry of {len(entry)} bytes is over the limit")
        parts.append(len(entry).to_bytes(2, "big"))
        parts.append(entry)
    return b"".join(parts)


def parse_bundle(data: bytes, *, limit: int = TILE_WIDTH) -> list[bytes]:
    """Return the entries of a bundle, at most *limit*.

    Raises:
        UntrustedDataError: `bundle-format` an entry runs past the end, or there are too many.

    """
    entries: list[bytes] = []
    start, end = 0, len(data)
    while start < end:
        stop = start + 2 + int.from_bytes(data[start : start + 2], "big")
        if stop > end or start + 2 > end or len(entries) == limit:
            raise UntrustedDataError("an entry bundle does not end where its entries do", check="bundle-format")
        entries.append(data[start + 2 : stop])
        start = stop
    return entries
