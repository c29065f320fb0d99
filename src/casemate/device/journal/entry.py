"""What one entry of the log looks like: u64 index, u32 epoch, then a sealed event or an epoch record in the clear.

An epoch record is how an epoch begins: the epoch's key, sealed to the owner. It stands in the log itself, so the tree
covers it, and again in `epochs/` where a reader finds it without a search. Its epoch number has the top bit set.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Final

from casemate.crypto.record import EpochKey
from casemate.errors import UntrustedDataError

_HEADER = struct.Struct(">QI")
_RECORD: Final = 0x8000_0000
MAX_EPOCH: Final = _RECORD - 1
HEADER_BYTES: Final = _HEADER.size


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An entry taken apart; *body* is a sealed event, or the epoch record when *is_epoch*."""

    index: int
    epoch: int
    is_epoch: bool
    body: bytes


def context_of(origin: str, epoch: int, index: int) -> bytes:
    """Return the associated data of an event: its log, epoch and place."""
    return b"casemate/journal/entry/1\n" + origin.encode() + b"\n" + _HEADER.pack(index, epoch)


def seal_event(key: EpochKey, index: int, event: bytes, origin: str) -> bytes:
    """Return the entry of *event* at *index*."""
    return _HEADER.pack(index, key.epoch) + key.seal(index, event, context_of(origin, key.epoch, index))


def open_event(key: EpochKey, entry: Entry, origin: str) -> bytes:
    """Return the event's bytes.

    Raises:
        UntrustedDataError: `record-tag`.

    """
    return key.open(entry.index, entry.body, context_of(origin, entry.epoch, entry.index))


def pack_epoch(epoch: int, index: int, record: bytes) -> bytes:
    """Return the entry that opens *epoch* at *index*."""
    return _HEADER.pack(index, epoch | _RECORD) + record


def parse_entry(data: bytes, *, at: int) -> Entry:
    """Take the entry at place *at* apart.

    Raises:
        UntrustedDataError: `entry-index` it is too short, or says another place.

    """
    if len(data) < _HEADER.size:
        raise UntrustedDataError(f"entry {at} is too short", check="entry-index")
    index, epoch = _HEADER.unpack_from(data)
    if index != at:
        raise UntrustedDataError(f"entry {at} says it is entry {index}", check="entry-index")
    return Entry(index, epoch & MAX_EPOCH, bool(epoch & _RECORD), data[_HEADER.size :])
