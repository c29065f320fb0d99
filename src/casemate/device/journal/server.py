"""The journal process: many clients, one writer, group commit.

A client is known by the descriptor it was given, so its role is a fact: what it may report is the table in
`formats.event`. Nobody can hold the others up: sockets never block, a client that does not read its answers is
paused, each commit takes turns between clients, and what strangers can cause (the gateway's events) has a rate.

A commit is one durable write for up to 64 events. The checkpoint follows before the answers when something severe
happened or a quarter of a second has passed since the last one, else within that time: the tail has it all meanwhile.
"""

from __future__ import annotations

import collections
import selectors
import socket
import sys
from collections.abc import Iterator
from typing import Final

from casemate.clock import Clock
from casemate.device.channel import Channel, ChannelClosed
from casemate.device.journal import witnessing
from casemate.device.journal.writer import JournalWriter
from casemate.errors import CasemateError, OperationError, UntrustedDataError
from casemate.formats import event, event_schema, ipc

BATCH: Final = 64
MAX_EVENTS: Final = 1024
PUBLISH_EVERY: Final = 0.25
PUBLISH_RETRY: Final = 2.0
RATES: Final = {"gateway": (1000.0, 8192.0)}
"""Events per second in the long run and at once, by role; who is not named has no limit."""
CLIENT_ROLES: Final = frozenset({"agent", "vault", "gateway"})
CLIENT_PREFIX: Final = "client:"
_FRAME_LIMIT: Final = 1024 * 1024
_READ: Final = 64 * 1024
_MAX_UNREAD: Final = 256 * 1024


class ClientLink:
    """One client's socket: requests waiting to be committed, answers waiting to be read."""

    def __init__(self, role: str, sock: socket.socket) -> None:
        """Serve *role* over *sock*."""
        sock.setblocking(False)
        self.role = role
        self.sock = sock
        self.queue: collections.deque[ipc.Append] = collections.deque()
        self.closed = False
        self._reader = ipc.FrameReader(ipc.ToJournal, limit=_FRAME_LIMIT)
        self._out = bytearray()

    @property
    def wants(self) -> int:
        """Return the selector events to wait for: a client that does not read its answers is not read either."""
        if not self._out:
            return selectors.EVENT_READ
        return selectors.EVENT_WRITE | (selectors.EVENT_READ if len(self._out) < _MAX_UNREAD else 0)

    def read(self) -> None:
        """Take what has arrived; a broken protocol or the end closes the link once its queue is done."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            self.queue.extend(self._reader.feed(data))
        except UntrustedDataError as error:
            _tell(f"link of {self.role} closed: {error.message}")
            data = b""
        self.closed = self.closed or not data

    def answer(self, message: ipc.Message) -> None:
        """Queue an answer and send what goes."""
        self._out += ipc.encode(message)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._out:
                del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
            self._out.clear()


class Allowance:
    """A token bucket: *rate* events per second in the long run, *burst* at once."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        """Start full at *now* (monotonic seconds)."""
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._then = now

    def take(self, count: int, now: float) -> bool:
        """Return whether *count* events may pass now."""
        self._left = min(self._burst, self._left + (now - self._then) * self._rate)
        self._then = now
        if count > self._left:
            return False
        self._left -= count
        return True


class JournalServer:
    """Serves clients until the agent closes the control link."""

    def __init__(self, writer: JournalWriter, control: Channel, clock: Clock) -> None:
        """Write to *writer*, take orders from *control*."""
        self._writer = writer
        self._control = control
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._links: collections.deque[ClientLink] = collections.deque()
        self._next_publish = 0.0
        self._refusals: collections.Counter[str] = collections.Counter()
        self._allowances = {role: Allowance(*limits, clock.monotonic()) for role, limits in RATES.items()}

    def attach(self, role: str, fd: int) -> None:
        """Serve a client of *role* over the socket *fd*.

        Raises:
            UntrustedDataError: no such role.

        """
        if role not in CLIENT_ROLES:
            raise UntrustedDataError(f"{role!r} is no client of the journal", check="journal-role")
        link = ClientLink(role, socket.socket(fileno=fd))
        self._links.append(link)
        self._selector.register(link.sock, link.wants, link)

    def serve(self) -> None:
        """Work until the control link ends; then commit what has already arrived.

        Raises:
            OperationError: the disk failed in a way that only a new start can judge.

        """
        try:
            while True:
                for key, mask in self._selector.select(self._patience()):
                    if key.data is None:
                        self._obey()
                    else:
                        self._touch(key.data, mask)
                self._work()
        except ChannelClosed:
            for link in self._links:
                link.read()
            self._work()

    def _patience(self) -> float | None:
        if self._writer.published == self._writer.size:
            return None
        return max(0.0, self._next_publish - self._clock.monotonic())

    def _obey(self) -> None:
        while True:
            message, fds = self._control.recv()
            if isinstance(message, ipc.Ping):
                self._control.send(ipc.Pong(n=message.n))
            elif isinstance(message, ipc.Attach):
                self.attach(message.role, fds[0])
            elif isinstance(message, ipc.ProveLog):
                self._control.send(witnessing.prove(self._writer, message))
            elif isinstance(message, ipc.KeepWitnessed):
                witnessing.keep(self._writer, message.note)
            if not self._control.buffered:
                return

    def _touch(self, link: ClientLink, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            link.flush()
        if mask & selectors.EVENT_READ:
            link.read()

    def _work(self) -> None:
        """Commit everything that waits, publish when due, let go of closed links."""
        while batch := list(self._take_batch()):
            self._commit(batch)
        if self._writer.published < self._writer.size and self._clock.monotonic() >= self._next_publish:
            self._publish()
        for link in list(self._links):
            if link.closed and not link.queue:
                self._links.remove(link)
                self._selector.unregister(link.sock)
                link.sock.close()
            elif self._selector.get_key(link.sock).events != link.wants:
                self._selector.modify(link.sock, link.wants, link)

    def _take_batch(self) -> Iterator[tuple[ClientLink, ipc.Append]]:
        """Yield requests worth up to `BATCH` events, one per client in turn; a larger request goes alone."""
        room = BATCH
        idle = 0
        while room > 0 and idle < len(self._links):
            link = self._links[0]
            self._links.rotate(-1)
            if not link.queue or (room < BATCH and len(link.queue[0].events) > room):
                idle += 1
                continue
            idle = 0
            request = link.queue.popleft()
            room -= max(1, len(request.events))
            yield link, request

    # -- committing

    def _commit(self, batch: list[tuple[ClientLink, ipc.Append]]) -> None:
        """Make the good requests of *batch* durable together and answer every one."""
        stamped: list[bytes] = []
        good: list[tuple[ClientLink, ipc.Append, int]] = []
        urgent = False
        for link, request in batch:
            try:
                urgent |= self._check(link, request, stamped)
                good.append((link, request, len(stamped)))
            except UntrustedDataError as error:
                self._refuse(link, request, error)
        if not stamped:
            return
        first = self._writer.size
        try:
            self._writer.append(stamped)
        except OperationError as error:
            if self._writer.broken:
                raise
            for link, request, _ in good:
                link.answer(_not_appended(request, error))
            return
        if urgent or self._clock.monotonic() >= self._next_publish:
            self._publish()
        for link, request, count in good:
            link.answer(ipc.Appended(id=request.id, index=first + count - 1))

    def _check(self, link: ClientLink, request: ipc.Append, stamped: list[bytes]) -> bool:
        """Add the events of *request* to *stamped*, all or none; return whether one is severe."""
        now = self._clock.wall()
        if not 1 <= len(request.events) <= MAX_EVENTS:
            raise UntrustedDataError("a request holds 1 to 1024 events", check="event")
        allowance = self._allowances.get(link.role)
        if allowance and not allowance.take(len(request.events), self._clock.monotonic()):
            raise UntrustedDataError(f"{link.role} reports too much at once", check="event-rate")
        checked = [event_schema.check(item, role=link.role) for item in request.events]
        stamped += [
            event_schema.stamp(item, role=link.role, device=self._writer.origin, now=now) for item in request.events
        ]
        return any(item.severity_id >= event.Severity.HIGH for item in checked)

    def _refuse(self, link: ClientLink, request: ipc.Append, error: UntrustedDataError) -> None:
        """Answer, and record it each time the count doubles: a process that lies must not fill the log either."""
        link.answer(_not_appended(request, error))
        self._refusals[link.role] += 1
        count = self._refusals[link.role]
        if count & (count - 1) == 0:
            now = self._clock.wall()
            try:
                self._writer.record(
                    [event.event_refused(role=link.role, check=error.check, count=count, now=now)], role="journal"
                )
            except OperationError as fault:
                _tell(fault.message)

    def _publish(self) -> None:
        """Publish; on a full disk say so and try again later, for the tail holds everything."""
        delay = PUBLISH_EVERY
        try:
            self._writer.publish()
        except OperationError as error:
            _tell(f"checkpoint not written: {error.message}")
            delay = PUBLISH_RETRY
        self._next_publish = self._clock.monotonic() + delay


def _not_appended(request: ipc.Append, error: CasemateError) -> ipc.NotAppended:
    return ipc.NotAppended(id=request.id, code=error.code, message=error.message, hint=error.hint)


def _tell(message: str) -> None:
    """Tell whoever reads the device's stderr (systemd's journal, or a terminal)."""
    sys.stderr.write(f"journal: {message}\n")
