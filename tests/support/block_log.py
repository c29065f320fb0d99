"""What a disk may hold after a power cut: a log of block writes, and every torn state that it allows.

The log is dm-log-writes' format, as QEMU's `blklogwrites` makes it. Writes between two flushes may reach the disk in
any selection, in pieces of 4 KiB; everything before a flush is durable.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
PIECE = 4096
Write = tuple[int, bytes]
Blocks = dict[int, bytes]


def epochs(log: Path) -> Iterator[list[Write]]:
    """Yield the writes (offset, bytes) between two flushes."""
    with log.open("rb") as file:
        magic, version, entries, sector = struct.unpack("<QQQI", file.read(28))
        assert (magic, version) == (MAGIC, 1), "not a log of block writes"
        offset = sector
        pending: list[Write] = []
        for _ in range(entries):
            file.seek(offset)
            at, count, flags, _length = struct.unpack("<QQQQ", file.read(32))
            offset += sector
            if flags & FLUSH:
                yield pending
                pending = []
            if count and not flags & (DISCARD | MARK):
                file.seek(offset)
                pending.append((at * sector, file.read(count * sector)))
                offset += count * sector
            if flags & FUA:
                yield pending
                pending = []
        yield pending


def pieces(writes: list[Write]) -> list[Write]:
    """Cut writes at the blocks' borders: each piece reaches the disk by itself."""
    cut = []
    for offset, data in writes:
        start = 0
        while start < len(data):
            size = min(PIECE - (offset + start) % PIECE, len(data) - start)
            cut.append((offset + start, data[start : start + size]))
            start += size
    return cut


class Disk:
    """A disk as it was before, and what has been written since, block by block."""

    def __init__(self, start: bytes) -> None:
        self.start = start
        self.blocks: Blocks = {}

    def block(self, number: int, blocks: Blocks) -> bytes:
        found = blocks.get(number) or self.blocks.get(number)
        return found or self.start[number * PIECE : (number + 1) * PIECE]

    def after(self, writes: list[Write]) -> Blocks:
        """Return the blocks that differ from the start when *writes*, and all before, arrived."""
        blocks: Blocks = {}
        for offset, data in writes:
            number, inside = divmod(offset, PIECE)
            old = self.block(number, blocks)
            blocks[number] = old[:inside] + data + old[inside + len(data) :]
        return self.blocks | blocks


def torn_states(start: bytes, log: Path, seed: int) -> list[Blocks]:
    """Return distinct states of the disk, in the order of time; the last one has everything."""
    chance, disk = random.Random(seed), Disk(start)
    found: dict[bytes, Blocks] = {}
    for writes in epochs(log):
        parts = pieces(writes)
        for chosen in _selections(len(parts), chance):
            blocks = disk.after([part for part, taken in zip(parts, chosen, strict=True) if taken])
            found.setdefault(_digest(start, blocks), blocks)
        disk.blocks = disk.after(parts)
    return list(found.values())


def _selections(count: int, chance: random.Random) -> Iterator[tuple[bool, ...]]:
    """Yield which of *count* pieces arrived: all selections of a few; else every prefix, and some at random."""
    if count <= 8:
        yield from itertools.product((False, True), repeat=count)
        return
    for length in range(count + 1):
        yield tuple(index < length for index in range(count))
    for _ in range(count):
        yield tuple(chance.random() < 0.5 for _ in range(count))
    for lost in range(count):
        yield tuple(index != lost for index in range(count))


def _digest(start: bytes, blocks: Blocks) -> bytes:
    state = hashlib.sha256()
    for number, data in sorted(blocks.items()):
        if data != start[number * PIECE : (number + 1) * PIECE]:
            state.update(number.to_bytes(8, "big") + hashlib.sha256(data).digest())
    return state.digest()
