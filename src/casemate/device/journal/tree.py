"""The tree as it lies on disk: any subtree's hash, and from those proofs, without reading an entry."""

from __future__ import annotations

import functools

from casemate.device.journal.files import LogFiles
from casemate.errors import NotFoundError, UntrustedDataError
from casemate.formats import tlog


class TileTree:
    """The tree of *size* entries over the tiles in *files*. Tiles are read once."""

    def __init__(self, files: LogFiles, size: int) -> None:
        """Answer for the first *size* entries."""
        self._files = files
        self.size = size
        self.subtree: tlog.Subtree = functools.lru_cache(maxsize=65_536)(self._subtree)
        self._tile = functools.lru_cache(maxsize=1024)(self._read_tile)

    def root(self, size: int | None = None) -> bytes:
        """Return the root over the first *size* entries (all, unless given)."""
        return tlog.tree_hash(0, self.size if size is None else size, self.subtree)

    def leaf(self, index: int) -> bytes:
        """Return the leaf hash of entry *index*."""
        return self._subtree(index, 1)

    def inclusion(self, index: int) -> list[bytes]:
        """Return the proof that entry *index* is in the tree.

        Raises:
            NotFoundError: the tree has no such entry.

        """
        if not 0 <= index < self.size:
            raise NotFoundError(
                f"the journal has no published entry {index}", hint=f"entries are numbered 0 to {self.size - 1}"
            )
        return tlog.prove_inclusion(index, self.size, self.subtree)

    def consistency(self, old: int) -> list[bytes]:
        """Return the proof that this tree extends its first *old* entries."""
        return tlog.prove_consistency(old, self.size, self.subtree)

    def _subtree(self, first: int, count: int) -> bytes:
        """Read (or compute inside one tile) the hash of a full aligned subtree."""
        height = count.bit_length() - 1
        level, inside = divmod(height, 8)  # a tile is 8 levels high
        start = first >> (8 * level)
        hashes = self._tile(level, start // tlog.TILE_WIDTH)
        place = start % tlog.TILE_WIDTH
        return tlog.root_of(hashes[place : place + (1 << inside)])

    def _read_tile(self, level: int, index: int) -> list[bytes]:
        width = min(tlog.TILE_WIDTH, (self.size >> (8 * level)) - index * tlog.TILE_WIDTH)
        name = tlog.tile_path(level, index, width)
        return tlog.parse_tile(read_full_or_partial(self._files, name), width)


def read_full_or_partial(files: LogFiles, name: str) -> bytes:
    """Read a tile or bundle; a partial one may have grown full and been deleted meanwhile.

    Raises:
        UntrustedDataError: `tile-missing`.

    """
    for candidate in dict.fromkeys((name, name.partition(".p/")[0])):
        try:
            return files.read(candidate)
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise UntrustedDataError(f"{name} is missing", check="tile-missing")
