"""The RFC 6962 tree: leaf and node hashes, the root of a run of hashes, and the state an appender needs.

`TreeState` keeps, per tile level, the hashes of the last unfinished tile: at most 255 per level, so a tree of any size
fits in a few kilobytes and continues without reading what is already on disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

HASH_SIZE: Final = 32
TILE_WIDTH: Final = 256
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """Return SHA-256(0x00 || *entry*)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 || *left* || *right*)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def largest_power_below(count: int) -> int:
    """Return the largest power of two smaller than *count* (>= 2): where RFC 6962 splits a tree."""
    return 1 << ((count - 1).bit_length() - 1)


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the RFC 6962 root over *hashes* (each the root of an equally large full subtree, or a leaf)."""
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    sha256 = hashlib.sha256
    while len(level) > 1:
        # pairing from the left and carrying an odd last hash up gives the same tree as the recursive definition
        above = [sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


@dataclasses.dataclass(frozen=True, slots=True)
class FullTile:
    """256 hashes that will never change again."""

    level: int
    index: int
    hashes: tuple[bytes, ...]


class TreeState:
    """A tree that grows. `levels[l]` holds the hashes of the unfinished tile at level l."""

    __slots__ = ("levels", "size")

    def __init__(self, size: int = 0, levels: Sequence[Sequence[bytes]] = ()) -> None:
        """Continue at *size* entries with the unfinished tiles *levels* (their widths must fit *size*)."""
        self.size = size
        self.levels: list[list[bytes]] = [list(level) for level in levels] or [[]]
        widths = [size // TILE_WIDTH**level % TILE_WIDTH for level in range(len(self.levels))]
        if widths != [len(level) for level in self.levels] or size >= TILE_WIDTH ** len(self.levels):
            raise ValueError("the unfinished tiles do not fit the size")

    def add(self, leaf: bytes) -> Iterator[FullTile]:
        """Append one leaf hash; yield the tiles this completes, lowest level first. Exhaust the iterator."""
        self.size += 1
        self.levels[0].append(leaf)
        if len(self.levels[0]) == TILE_WIDTH:
            yield from self._carry()

    def add_tile(self, leaves: Sequence[bytes]) -> Iterator[FullTile]:
        """Append the leaf hashes of one tile, full or the last; the tree must stand at a tile's start.

        Yields the tiles this completes, as `add` does. Exhaust the iterator.
        """
        if self.levels[0] or len(leaves) > TILE_WIDTH:
            raise ValueError("the tree does not stand at the start of a tile")
        self.size += len(leaves)
        self.levels[0].extend(leaves)
        if len(leaves) == TILE_WIDTH:
            yield from self._carry()

    def _carry(self) -> Iterator[FullTile]:
        """Hand the root of each full tile up to the level above it."""
        number, index = 0, self.size
        while len(self.levels[number]) == TILE_WIDTH:
            hashes = tuple(self.levels[number])
            self.levels[number].clear()
            if number + 1 == len(self.levels):
                self.levels.append([])
            self.levels[number + 1].append(root_of(hashes))
            index //= TILE_WIDTH
            yield FullTile(number, index - 1, hashes)
            number += 1

    def root(self) -> bytes:
        """Return the root over everything appended."""
        root: bytes | None = None
        for level in self.levels:
            for peak in reversed(_peaks(level)):
                root = peak if root is None else node_hash(peak, root)
        return EMPTY_ROOT if root is None else root


def _peaks(hashes: Sequence[bytes]) -> list[bytes]:
    """Return the roots of the perfect subtrees that *hashes* splits into, left to right."""
    peaks, start, left = [], 0, len(hashes)
    while left:
        width = 1 << (left.bit_length() - 1)
        peaks.append(root_of(hashes[start : start + width]))
        start, left = start + width, left - width
    return peaks
