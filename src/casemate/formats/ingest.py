"""Check-ins on their way from one server to the database through a message bus: a batch, sealed with the fleet's key.

The bus is not ours: whoever reaches it can write to it. So a batch is taken only with its HMAC-SHA-256 (32 bytes, then
MessagePack), and bounded before it is decoded. Its name makes it count once, however often it is delivered.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Final

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED

MAX_BATCH: Final = 900_000
"""Bytes: NATS takes a mebibyte unless told otherwise."""
ROWS: Final = 2_000
_TAG: Final = 32

Text = Annotated[str, msgspec.Meta(max_length=128)]

SeenRow = tuple[Text, float, Text, Text, Text, float, int]
"""Device, last_seen (seconds since the epoch), state, agent, generation, clock_skew (s), sequence."""
HealthRow = tuple[Text, int, int, float, int, float, int, int, int]
"""Device, bucket (s), samples, temperature_max (C), memory_max (bytes), load_max, requests, refusals, faults."""


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What some devices said; *name* is a UUID in hex."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    seen: Annotated[list[SeenRow], msgspec.Meta(max_length=ROWS)]
    health: Annotated[list[HealthRow], msgspec.Meta(max_length=ROWS)]


def seal(batch: Batch, key: bytes) -> bytes:
    """Return *batch* as it travels."""
    body = msgspec.msgpack.encode(batch)
    return hmac.new(key, body, hashlib.sha256).digest() + body


def open_batch(data: bytes, key: bytes) -> Batch:
    """Return the batch in *data*.

    Raises:
        UntrustedDataError: `bus-size`, `bus-seal` (another's, or changed on the way) or `bus-form`.

    """
    if not _TAG < len(data) <= MAX_BATCH:
        raise UntrustedDataError("a batch of that size is none", check="bus-size")
    tag, body = data[:_TAG], data[_TAG:]
    if not hmac.compare_digest(tag, hmac.new(key, body, hashlib.sha256).digest()):
        raise UntrustedDataError("a batch that no server of this fleet sealed", check="bus-seal")
    try:
        return msgspec.msgpack.decode(body, type=Batch)
    except MALFORMED as error:
        raise UntrustedDataError("a batch of another form", check="bus-form") from error
