"""The wake stream: one open response per device, so that a command acts in seconds and not at the next check-in.

A stream carries no command. It says "call now"; the device then checks in, and what it fetches is signed. Streams end
when the device may not have one any more, and after `MAX_SECONDS` in any case. What other processes changed is heard
of through `changes`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

MAX_SECONDS: Final = 3600.0
KEEP_ALIVE: Final = 25.0
"""Seconds between comments on an idle stream: shorter than what home routers forget a connection after."""
RETRY_MS: Final = 1000
RETURNS_PER_SECOND: Final = 500
"""How many of the streams that a stopping server ends are asked to come to another one each second."""
PER_DEVICE: Final = 2
"""Streams of one device; an older one ends when a third comes."""


@dataclasses.dataclass(slots=True, eq=False)
class Stream:
    """One open wake stream."""

    device: str
    event: asyncio.Event
    closed: bool = False
    retry_ms: int = RETRY_MS

    def end(self, retry_ms: int = RETRY_MS) -> None:
        """Have its response finish; the device comes back at some moment within *retry_ms*."""
        self.closed, self.retry_ms = True, retry_ms
        self.event.set()


class Hub:
    """The open streams of this process."""

    def __init__(self) -> None:
        """Nobody listens yet."""
        self._streams: dict[str, list[Stream]] = {}
        self.count = 0

    def join(self, device: str) -> Stream:
        """Open a stream."""
        stream = Stream(device, asyncio.Event())
        held = self._streams.setdefault(device, [])
        held.append(stream)
        self.count += 1
        if len(held) > PER_DEVICE:
            held[0].end()
        return stream

    def leave(self, stream: Stream) -> None:
        """Forget a stream."""
        held = self._streams.get(stream.device, [])
        if stream in held:
            held.remove(stream)
            self.count -= 1
        if not held:
            self._streams.pop(stream.device, None)

    def wake(self, device: str) -> None:
        """Have every stream of *device* look again whether it may go on, and tell the device to call."""
        for stream in self._streams.get(device, ()):
            stream.event.set()

    def close(self) -> None:
        """End every stream: the server stops. The more there are, the more time they have to come to another."""
        spread = RETRY_MS + self.count * 1000 // RETURNS_PER_SECOND
        for held in list(self._streams.values()):
            for stream in list(held):
                stream.end(spread)


async def events(stream: Stream, admitted: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    """Yield the bytes of a wake stream until `admitted()` says no, or its time is over.

    It is asked at once, too: what changed after the device was let in and before it joined has woken nobody.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + MAX_SECONDS
    stays = await admitted()
    yield b"retry: %d\nevent: hello\ndata: {}\n\n" % RETRY_MS
    while stays and not stream.closed and loop.time() < end:
        try:
            async with asyncio.timeout(KEEP_ALIVE):
                await stream.event.wait()
        except TimeoutError:
            yield b":\n\n"
            continue
        stream.event.clear()
        stays = not stream.closed and await admitted()
        if stays:
            yield b"event: wake\ndata: {}\n\n"
    yield b"retry: %d\nevent: bye\ndata: {}\n\n" % stream.retry_ms
