"""The tail: one append-only file that makes an entry durable with a single sync, before any tile is written.

    head    magic, length, (base, unfinished upper tiles at base), MAC
    frames  magic, payload length, first index, count, published size, MAC, payload (entries as in a bundle)

The head holds what the tree needs to continue from `base` (a multiple of 256), so recovery reads this file and nothing
else. Each MAC also covers the MAC before it: frames cannot be edited, reordered, removed from the middle or moved
between tails. The MAC is no signature: a checkpoint is signed only after its entries are durable, so a crash can never
leave two checkpoints of one size. A last frame that is not whole is a torn write and was never acknowledged.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Sequence
from typing import Final

from casemate.crypto import kdf
from casemate.crypto.secret import Secret
from casemate.device.journal.files import PRIVATE, LogFiles, write_error
from casemate.durable import write_all
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import tlog

NAME: Final = "tail"
MAX_FRAME_ENTRIES: Final = 65_536
_HEAD = struct.Struct(">8sI")
_HEAD_MAGIC: Final = b"CMJTAIL1"
_FRAME = struct.Struct(">4sIQIQ")
_FRAME_MAGIC: Final = b"CMJF"
_MAC: Final = kdf.MAC_BYTES
_MAX_HEAD: Final = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class TailContent:
    """What a tail says: entries *base* .. *base* + len(*entries*) - 1, and how its bytes ended."""

    base: int
    levels: list[list[bytes]]
    entries: list[bytes]
    published: int
    length: int  # of the whole part, in bytes
    torn: int  # bytes after it
    mac: bytes

    @property
    def size(self) -> int:
        """Return the tree size after the last whole frame."""
        return self.base + len(self.entries)

    def state(self) -> tlog.TreeState:
        """Return the tree at `base`."""
        return tlog.TreeState(self.base, [[], *self.levels])


def pack_head(base: int, levels: Sequence[Sequence[bytes]], key: Secret) -> bytes:
    """Return the head of a tail that starts at *base* with the unfinished tiles *levels* above level 0."""
    body = struct.pack(">QH", base, len(levels))
    for level in levels:
        body += struct.pack(">H", len(level)) + b"".join(level)
    head = _HEAD.pack(_HEAD_MAGIC, len(body)) + body
    return head + kdf.mac(key, b"head", head)


def pack_frame(first: int, entries: Sequence[bytes], published: int, before: bytes, key: Secret) -> tuple[bytes, bytes]:
    """Return a frame's bytes and its MAC, which the next frame needs as *before*."""
    payload = tlog.pack_bundle(entries)
    head = _FRAME.pack(_FRAME_MAGIC, len(payload), first, len(entries), published)
    mac = kdf.mac(key, b"frame", before, head, payload)
    return head + mac + payload, mac


def scan(data: bytes, key: Secret | None) -> TailContent:
    """Read a tail; without *key* (an outsider's check) MACs are not verified.

    Raises:
        UntrustedDataError: `tail-head` or `tail-frame`: altered, as opposed to torn at the end.

    """
    base, levels, start, mac = _scan_head(data, key)
    entries: list[bytes] = []
    published = 0
    while start < len(data):
        frame = _scan_frame(data, start, base + len(entries), mac, key)
        if frame is None:
            break
        found, published, start, mac = frame
        entries += found
    return TailContent(base, levels, entries, published, start, len(data) - start, mac)


def _scan_head(data: bytes, key: Secret | None) -> tuple[int, list[list[bytes]], int, bytes]:
    try:
        magic, length = _HEAD.unpack_from(data)
        end = _HEAD.size + length
        if magic != _HEAD_MAGIC or length > _MAX_HEAD or end + _MAC > len(data):
            raise _altered("tail-head", 0)
        mac = data[end : end + _MAC]
        if key is not None and not kdf.same(mac, kdf.mac(key, b"head", data[:end])):
            raise _altered("tail-head", 0)
        base, count = struct.unpack_from(">QH", data, _HEAD.size)
        at, levels = _HEAD.size + 10, []
        for _ in range(count):
            (width,) = struct.unpack_from(">H", data, at)
            levels.append(tlog.parse_tile(data[at + 2 : at + 2 + width * tlog.HASH_SIZE], width))
            at += 2 + width * tlog.HASH_SIZE
        tlog.TreeState(base, [[], *levels])
    except (struct.error, ValueError) as error:
        raise _altered("tail-head", 0) from error
    if at != end:
        raise _altered("tail-head", 0)
    return base, levels, end + _MAC, mac


def _scan_frame(
    data: bytes, start: int, first: int, before: bytes, key: Secret | None
) -> tuple[list[bytes], int, int, bytes] | None:
    """Return (entries, published, end, MAC) of the frame at *start*, or None when it is the torn end of the file."""
    frame = _whole_frame(data, start, first, before, key)
    if frame is None and _continues(data, start + len(_FRAME_MAGIC), first):
        raise _altered("tail-frame", start)
    return frame


def _whole_frame(
    data: bytes, start: int, first: int, before: bytes, key: Secret | None
) -> tuple[list[bytes], int, int, bytes] | None:
    body = start + _FRAME.size + _MAC
    if body > len(data):
        return None
    magic, length, index, count, published = _FRAME.unpack_from(data, start)
    end = body + length
    if magic != _FRAME_MAGIC or index != first or not 1 <= count <= MAX_FRAME_ENTRIES or end > len(data):
        return None
    mac, payload = data[body - _MAC : body], data[body:end]
    if key is not None and not kdf.same(mac, kdf.mac(key, b"frame", before, data[start : body - _MAC], payload)):
        return None
    try:
        entries = tlog.parse_bundle(payload, limit=count)
    except UntrustedDataError:
        return None
    return (entries, published, end, mac) if len(entries) == count else None


def _continues(data: bytes, start: int, first: int) -> bool:
    """Return whether a later frame follows: then what stands before it was whole once and has been altered since.

    A torn write cannot look like this: one frame is written and synced before the next, and its payload is
    ciphertext. (Its blocks may reach the disk in any order, so any part of the last frame may be missing.)
    """
    while (start := data.find(_FRAME_MAGIC, start)) >= 0:
        if start + _FRAME.size <= len(data):
            _, _, index, count, _ = _FRAME.unpack_from(data, start)
            if first < index <= first + MAX_FRAME_ENTRIES and 1 <= count <= MAX_FRAME_ENTRIES:
                return True
        start += 1
    return False


def _altered(check: str, at: int) -> UntrustedDataError:
    return UntrustedDataError(
        f"the journal's tail was altered at byte {at}",
        check=check,
        hint="keep it as evidence and start anew with `casemate journal archive`",
    )


class Tail:
    """The open tail of a writer."""

    def __init__(self, files: LogFiles, key: Secret, content: TailContent) -> None:
        """Continue the tail that `scan` read as *content*; a torn end is cut off for good."""
        self._files = files
        self._key = key
        self.base = content.base
        self._mac = content.mac
        self._length = content.length
        self._fd = files.open_for_append(NAME)
        self.broken = False
        if content.torn:
            self._cut()

    @classmethod
    def create(cls, files: LogFiles, key: Secret, state: tlog.TreeState, entries: Sequence[bytes]) -> Tail:
        """Replace the tail by one that starts at the last full bundle of *state* and holds *entries* since then.

        Raises:
            OperationError: the disk is full; the tail before stays.

        """
        base = state.size - len(entries)
        data = pack_head(base, state.levels[1:], key)
        if entries:
            data += pack_frame(base, entries, state.size, data[-_MAC:], key)[0]
        files.write(NAME, data, sync=True, mode=PRIVATE)
        return cls(files, key, scan(data, key))

    @property
    def length(self) -> int:
        """Return how many bytes are durable."""
        return self._length

    def append(self, first: int, entries: Sequence[bytes], published: int) -> None:
        """Make *entries* durable: one write, one sync.

        Raises:
            OperationError: they are not durable and will not reappear. When `broken` is set as well, the tail's state
                is unknown and it must be opened again.

        """
        if self.broken:
            raise OperationError("the journal's disk failed", hint="check the disk; restart the device")
        frame, mac = pack_frame(first, entries, published, self._mac, self._key)
        try:
            os.lseek(self._fd, self._length, os.SEEK_SET)
            write_all(self._fd, frame)
        except OSError as error:
            self._cut()
            raise write_error(self._files.directory / NAME, error) from error
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self.broken = True  # after a failed sync the kernel may forget which pages were dirty
            raise write_error(self._files.directory / NAME, error) from error
        self._length += len(frame)
        self._mac = mac

    def _cut(self) -> None:
        try:
            os.ftruncate(self._fd, self._length)
            os.fdatasync(self._fd)
        except OSError:
            self.broken = True

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
