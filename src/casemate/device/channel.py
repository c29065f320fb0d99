"""Sockets between the device's processes: frames of `formats.ipc`, with descriptors beside them.

`Channel` blocks (vault, engine, journal); `AsyncChannel` is for asyncio (agent, gateway). Both read with `recvmsg`, so
a descriptor can arrive with any frame; `formats.ipc.descriptors()` says how many belong to a message. A peer that
sends a frame or a descriptor that does not belong to the link is cut off.
"""

from __future__ import annotations

import array
import asyncio
import collections
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import ipc

_READ: Final = 256 * 1024
_MAX_FDS: Final = 16
_SEND_BUFFER_LIMIT: Final = 64 * 1024 * 1024


class ChannelClosed(Exception):  # noqa: N818 - an event, not an error: the peer went away
    """The other end is gone."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a connected pair of close-on-exec stream sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class _Inbox:
    """Bytes and descriptors in, (message, descriptors) out. Shared by both kinds of channel; does no I/O."""

    def __init__(self, union: Any) -> None:
        self._reader = ipc.FrameReader(union)
        self._fds: collections.deque[int] = collections.deque()
        self.ready: collections.deque[tuple[Any, list[int]]] = collections.deque()

    def take(self, data: bytes, fds: Sequence[int]) -> None:
        self._fds.extend(fds)
        if len(self._fds) > _MAX_FDS:  # a frame that never ends must not be a way to fill our descriptor table
            self.drop()
            raise UntrustedDataError("too many descriptors for one frame", check="ipc-descriptors")
        for message in self._reader.feed(data):
            wanted = ipc.descriptors(message)
            if wanted > len(self._fds):
                raise UntrustedDataError("a frame came without its descriptors", check="ipc-descriptors")
            self.ready.append((message, [self._fds.popleft() for _ in range(wanted)]))
        if self._fds and not self._reader.pending:
            self.drop()
            raise UntrustedDataError("a descriptor came that no frame asked for", check="ipc-descriptors")

    def drop(self) -> None:
        """Close descriptors nobody took."""
        while self._fds:
            os.close(self._fds.popleft())
        for _, fds in self.ready:
            for fd in fds:
                os.close(fd)
        self.ready.clear()


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, flags, _ = sock.recvmsg(_READ, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise UntrustedDataError("too many descriptors in one frame", check="ipc-descriptors")
    return data, list(fds)


def _rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []


class Channel:
    """A blocking link."""

    def __init__(self, sock: socket.socket, union: Any) -> None:
        """Speak over *sock*; receive only members of *union*."""
        self.socket = sock
        self._inbox = _Inbox(union)

    def fileno(self) -> int:
        """Return the descriptor, for `select`."""
        return self.socket.fileno()

    def send(self, message: ipc.Message, fds: Sequence[int] = ()) -> None:
        """Send *message* whole, with *fds* beside it (they stay open here).

        Raises:
            ChannelClosed: the peer is gone.

        """
        frame = memoryview(ipc.encode(message))
        try:
            sent = self.socket.sendmsg([frame], _rights(fds))
            if sent < len(frame):
                self.socket.sendall(frame[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed from error

    def recv(self, timeout: float | None = None) -> tuple[Any, list[int]]:
        """Wait up to *timeout* seconds for the next message.

        Raises:
            ChannelClosed: end of file.
            TimeoutError: nothing whole came in time.
            UntrustedDataError: the peer broke the protocol; the link is closed.

        """
        self.socket.settimeout(timeout)
        try:
            while not self._inbox.ready:
                data, fds = _receive(self.socket)
                if not data:
                    raise ChannelClosed
                self._inbox.take(data, fds)
        except ConnectionResetError as error:
            raise ChannelClosed from error
        except UntrustedDataError:
            self.close()
            raise
        finally:
            if self.socket.fileno() >= 0:
                self.socket.settimeout(None)
        item: tuple[Any, list[int]] = self._inbox.ready.popleft()
        return item

    @property
    def buffered(self) -> bool:
        """Whether `recv` would return without touching the socket."""
        return bool(self._inbox.ready)

    def give_up(self) -> None:
        """Let nothing more through: an answer that comes late must not pass for that to the next question."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and every descriptor nobody took."""
        self._inbox.drop()
        self.socket.close()


class AsyncChannel:
    """A link for asyncio: iterate to receive, await `send` for back-pressure."""

    def __init__(self, sock: socket.socket, union: Any) -> None:
        """Speak over *sock* in the running loop; receive only members of *union*."""
        sock.setblocking(False)
        self.socket = sock
        self._inbox = _Inbox(union)
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._out: collections.deque[tuple[memoryview, Sequence[int]]] = collections.deque()
        self._out_size = 0
        self._drained: asyncio.Future[None] | None = None
        self._fault: BaseException | None = None
        self._loop.add_reader(sock.fileno(), self._on_readable)

    # -- receiving

    def _on_readable(self) -> None:
        try:
            data, fds = _receive(self.socket)
            if not data:
                raise ChannelClosed  # noqa: TRY301 - one place turns every end into the same state
            self._inbox.take(data, fds)
        except (BlockingIOError, InterruptedError):
            return
        except (ChannelClosed, ConnectionResetError):
            self._end(ChannelClosed())
        except UntrustedDataError as error:
            self._end(error)
        self._notify()

    def _notify(self) -> None:
        if self._wake and not self._wake.done():
            self._wake.set_result(None)

    def _end(self, fault: BaseException) -> None:
        if self._fault is None:
            self._fault = fault
            self._loop.remove_reader(self.socket.fileno())
            self._loop.remove_writer(self.socket.fileno())
        if self._drained and not self._drained.done():
            self._drained.set_result(None)

    async def recv(self) -> tuple[Any, list[int]]:
        """Wait for the next message.

        Raises:
            ChannelClosed: end of file.
            UntrustedDataError: the peer broke the protocol.

        """
        while not self._inbox.ready:
            if self._fault:
                raise self._fault
            self._wake = self._loop.create_future()
            await self._wake
        item: tuple[Any, list[int]] = self._inbox.ready.popleft()
        return item

    async def __aiter__(self) -> AsyncIterator[tuple[Any, list[int]]]:
        """Yield messages until the peer closes."""
        while True:
            try:
                yield await self.recv()
            except ChannelClosed:
                return

    # -- sending

    def post(self, message: ipc.Message, fds: Sequence[int] = ()) -> None:
        """Queue *message* without waiting; descriptors are duplicated, so the caller may close its own.

        Raises:
            ChannelClosed: the peer is gone.
            OperationError: the peer does not read and the queue is full.

        """
        if self._fault:
            raise ChannelClosed
        frame = memoryview(ipc.encode(message))
        if self._out_size + len(frame) > _SEND_BUFFER_LIMIT:
            raise OperationError("a process does not read its socket")
        self._out.append((frame, [os.dup(fd) for fd in fds]))
        self._out_size += len(frame)
        if len(self._out) == 1:
            self._flush()

    async def send(self, message: ipc.Message, fds: Sequence[int] = ()) -> None:
        """Queue *message* and wait until the kernel took everything queued."""
        self.post(message, fds)
        while self._out and not self._fault:
            if self._drained is None or self._drained.done():
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)
        if self._fault:
            raise ChannelClosed

    def _flush(self) -> None:
        while self._out:
            frame, fds = self._out[0]
            try:
                sent = self.socket.sendmsg([frame], _rights(fds))
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self.socket.fileno(), self._flush)
                return
            except OSError:
                self._end(ChannelClosed())
                self._notify()
                return
            for fd in fds:
                os.close(fd)
            self._out_size -= sent
            if sent < len(frame):
                self._out[0] = (frame[sent:], ())
            else:
                self._out.popleft()
        self._loop.remove_writer(self.socket.fileno())
        if self._drained and not self._drained.done():
            self._drained.set_result(None)

    def close(self) -> None:
        """Close the socket; a waiting `recv` raises `ChannelClosed`."""
        if self.socket.fileno() < 0:
            return
        self._end(ChannelClosed())
        self._notify()
        self._inbox.drop()
        for _, fds in self._out:
            for fd in fds:
                os.close(fd)
        self._out.clear()
        self.socket.close()


def _appended(reply: ipc.Appended | ipc.NotAppended) -> int:
    if isinstance(reply, ipc.NotAppended):
        raise OperationError(reply.message, hint=reply.hint)
    return reply.index


class JournalClient:
    """Record events from blocking code: returns once they are durable."""

    def __init__(self, sock: socket.socket) -> None:
        """Speak to the journal over *sock*."""
        self._channel = Channel(sock, ipc.FromJournal)
        self._next = 0

    def append(self, *events: dict[str, Any], timeout: float = 30.0) -> int:
        """Record *events* in order and return the index of the last.

        Raises:
            OperationError: the journal is gone, refused, or did not confirm in time: treat as not recorded.

        """
        self._next += 1
        try:
            self._channel.send(ipc.Append(id=self._next, events=list(events)))
            while True:
                reply, _ = self._channel.recv(timeout)
                if reply.id == self._next:
                    return _appended(reply)
        except (ChannelClosed, TimeoutError) as error:
            raise OperationError("the journal did not confirm the record") from error

    def close(self) -> None:
        """Close the link."""
        self._channel.close()


class AsyncJournalClient:
    """Record events from asyncio code: `append` waits for durability, `post` does not."""

    def __init__(self, sock: socket.socket) -> None:
        """Speak to the journal over *sock* in the running loop."""
        self._channel = AsyncChannel(sock, ipc.FromJournal)
        self._next = 0
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for reply, _ in self._channel:
            waiter = self._waiting.pop(reply.id, None)
            if waiter and not waiter.done():
                try:
                    waiter.set_result(_appended(reply))
                except OperationError as error:
                    waiter.set_exception(error)
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(OperationError("the journal is gone"))
        self._waiting.clear()

    async def append(self, *events: dict[str, Any], timeout: float = 30.0) -> int:  # noqa: ASYNC109 - as the blocking twin
        """Record *events* in order; return the index of the last once durable.

        Raises:
            OperationError: the journal is gone, refused, or did not confirm in time.

        """
        waiter = self._loop_future()
        self._waiting[self._next] = waiter
        try:
            await self._channel.send(ipc.Append(id=self._next, events=list(events)))
            return await asyncio.wait_for(waiter, timeout)
        except (ChannelClosed, TimeoutError) as error:
            raise OperationError("the journal did not confirm the record") from error

    def post(self, *events: dict[str, Any]) -> None:
        """Send *events* without waiting; raises OperationError when the journal is gone or does not read."""
        self._next += 1
        try:
            self._channel.post(ipc.Append(id=self._next, events=list(events)))
        except ChannelClosed as error:
            raise OperationError("the journal is gone") from error

    def _loop_future(self) -> asyncio.Future[int]:
        self._next += 1
        return asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """Close the link."""
        self._channel.close()
        self._reader.cancel()
