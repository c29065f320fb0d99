"""uvicorn's HTTP/1.1 with the peer's certificate in reach, deadlines it lacks, and less spent on each connection.

`PeerProtocol` uses uvicorn's internals (`scope` before `on_headers_complete`, `transport`, `on_response_complete`): its
version is pinned by the lock file, and a start-up self-test fails when they go away. What is taken from asyncio's TLS
only saves memory and tells a refused client why: without it everything works.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import sslproto
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from casemate.fleet.peer import EXTENSION, Peer, read_peer

HEAD_SECONDS: Final = 10.0
HEAD_BYTES: Final = 32 * 1024
MESSAGE_SECONDS: Final = 60.0
KEEP_ALIVE_SECONDS: Final = 960
"""Longer than the longest check-in interval: a handshake costs twenty times a check-in."""
STALL_SECONDS: Final = 60.0
TLS_BUFFER: Final = 16 * 1024
"""Bytes asyncio reads at once from a TLS connection, instead of 256 KiB: a record has no more than these."""
_NEVER: Final = float("inf")
_shared: Final = bytearray(TLS_BUFFER)
_shared_view: Final = memoryview(_shared)


def spare_memory() -> None:
    """Have asyncio make small TLS buffers: ten thousand idle devices would hold 2.5 GiB of nothing."""
    sslproto.SSLProtocol.max_size = TLS_BUFFER


def send_alerts() -> None:
    """Have asyncio send the alert that ends a handshake: it drops it, and a device is not told that its time is up."""
    ended: Any = sslproto.SSLProtocol._on_handshake_complete  # noqa: SLF001
    if ended.__name__ == "_said":
        return

    def _said(protocol: Any, failed: BaseException | None) -> None:
        if failed is not None:
            with contextlib.suppress(Exception):  # the connection ends either way
                protocol._process_outgoing()  # noqa: SLF001
        ended(protocol, failed)

    sslproto.SSLProtocol._on_handshake_complete = _said  # type: ignore[assignment, method-assign]  # noqa: SLF001


class Joined:
    """A transport that sends the head of an answer with its body: a system call and a TLS record fewer for each."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Write to *transport*."""
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        """Send *data* together with what was written in the same turn of the loop."""
        if self._held:
            self._transport.write(self._held + data)
            self._held = b""
        elif data:
            self._held = data
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what was held."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def close(self) -> None:
        """Send what was held, then close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._held = b""
        self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        """Leave the rest to the transport."""
        return getattr(self._transport, name)


class PeerProtocol(HttpToolsProtocol):
    """HTTP/1.1 that knows the certificate of its connection and does not wait for ever.

    `deadline` (the loop's time) is looked at by the listener once a second: a timer for each wait of each connection
    costs more than the waits.
    """

    deadline = _NEVER
    _stalled = _NEVER
    _head = 0
    _in_head = True
    _peer: Peer | None = None
    tell: Callable[[str], None] = staticmethod(lambda _: None)
    """Hears why a connection was ended or a message refused before there was a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the certificate once; begin to wait for a head."""
        super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls else None
        self._peer = read_peer(certificate) if certificate else None
        _share_buffer(transport)
        self.deadline = self.loop.time() + HEAD_SECONDS

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.deadline = self._stalled = _NEVER
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bound the head: in time, and in size."""
        if self._in_head:
            if not self._head:
                self.deadline = self.loop.time() + HEAD_SECONDS  # the first byte after a pause
            self._head += len(data)
        super().data_received(data)
        if self._in_head and self._head > HEAD_BYTES:
            self._abort("head-size")

    def on_headers_complete(self) -> None:
        """Hand the certificate on; from here the whole message has a deadline."""
        self._in_head, self._head = False, 0
        self.deadline = self.loop.time() + MESSAGE_SECONDS
        self.scope.setdefault("extensions", {})[EXTENSION] = self._peer  # type: ignore[assignment]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop waiting: the time is ours now."""
        self.deadline = _NEVER
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin the next request that came already, or wait for it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._in_head and not self._head:
            self.deadline = self.loop.time() + KEEP_ALIVE_SECONDS

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        self._stalled = self.loop.time() + STALL_SECONDS
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on: it reads again."""
        self._stalled = _NEVER
        super().resume_writing()

    def look_at(self, now: float) -> None:
        """End the connection when it is over its time."""
        if now > self.deadline or now > self._stalled:
            idle = self._in_head and not self._head and now <= self._stalled
            self._abort("" if idle else "too-slow")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self.tell("http-form")
        super().send_400_response(msg)

    def _abort(self, why: str) -> None:
        if self.transport and not self.transport.is_closing():
            self.transport.abort()
            if why:
                self.tell(why)


def _share_buffer(transport: asyncio.Transport) -> None:
    """Have every TLS connection read into the same bytes: asyncio copies them out before it does anything else."""
    with contextlib.suppress(AttributeError):
        inner = transport._ssl_protocol  # type: ignore[attr-defined]  # noqa: SLF001 - its buffer is all we want
        if len(inner._ssl_buffer) == TLS_BUFFER:  # noqa: SLF001
            inner._ssl_buffer, inner._ssl_buffer_view = _shared, _shared_view  # noqa: SLF001
