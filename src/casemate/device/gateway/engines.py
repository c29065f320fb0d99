"""Links to the engines: one per model. Slots, a bounded queue, deadlines, cancel.

A slot belongs to a request until the *engine* says it ended: a cancelled request keeps its slot until `done` or
`failed` comes back, so the gateway never counts a slot free that the engine still computes in. An engine that
ignores a cancel for `CANCEL_GRACE` seconds is reported as stuck, and the agent replaces it.

An engine that is replaced is not cut off. Its link retires: it starts nothing more, what waited for it waits for its
successor, in the same order, and it closes when its last request ended. Where there is no room for two engines the link
is held first: it starts nothing more, and its queue outlives it until a successor is there.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from casemate.device.channel import AsyncChannel, ChannelClosed
from casemate.device.gateway import refusals
from casemate.device.gateway.refusals import ApiError
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import ipc

CANCEL_GRACE: Final = 5.0
MOST_JOINED: Final = 4
MOST_WAITING: Final = 4 * 1024 * 1024
"""Characters of one answer that may wait for a slow client: more than any context holds, so only a liar gets there."""
_GONE_RETRY: Final = 2
"""Seconds a client is told to wait when an engine died and the agent has not said more."""

_QUARANTINED: Final = "quarantined"
"""The reason the agent gives when the fleet ordered it."""

Event = ipc.Chunk | ipc.Done | ipc.Failed
Turn: TypeAlias = "asyncio.Future[EngineLink]"
"""A place in a queue; its result is the link whose slot it got."""
Refusal = Callable[[], ApiError]
"""Makes a fresh error: one that is raised twice would keep the first request's frames, and its prompt, alive."""

_REFUSALS: Final[dict[str, Refusal]] = {
    "bad_request": lambda: refusals.bad_request("the engine refused the request's parameters"),
    "too_long": lambda: refusals.too_long("the prompt does not fit the model's context"),
    "deadline": refusals.deadline,
    "busy": lambda: refusals.busy(1),
    "internal": refusals.internal,
}


def _gone() -> ApiError:
    return refusals.engine_down(_GONE_RETRY)


class Call:
    """One request in an engine: await `next` until `Done`; every other ending raises `ApiError`."""

    def __init__(self, link: EngineLink, number: int, deadline: float) -> None:
        """Belong to *link* under *number*; *deadline* is in the loop's clock."""
        self._link = link
        self.number = number
        self._deadline = deadline
        self._events: collections.deque[Event] = collections.deque()
        self._wake: asyncio.Future[None] | None = None
        self._fault: ApiError | None = None
        self.ended = False
        self.cancelling = False
        self.pieces = 0
        self._waiting = 0

    def push(self, event: Event) -> None:
        """Take one event from the engine.

        Raises:
            UntrustedDataError: more waits here than an honest engine says in one answer.

        """
        if isinstance(event, ipc.Chunk):
            self.pieces += 1
            self._waiting += len(event.text) + 1  # empty ones fill the memory too
        if self._waiting > MOST_WAITING:
            raise UntrustedDataError("an answer without end", check="ipc-flood")
        self._events.append(event)
        self._rouse()

    def fail(self, fault: ApiError) -> None:
        """End with *fault* after what already arrived."""
        self._fault = self._fault or fault
        self._rouse()

    def _rouse(self) -> None:
        if self._wake and not self._wake.done():
            self._wake.set_result(None)

    async def next(self) -> ipc.Chunk | ipc.Done:
        """Return what came; chunks that waited are joined.

        Raises:
            ApiError: the engine refused, died, or missed the deadline.

        """
        while not self._events:
            if self._fault:
                raise self._fault
            await self._wait()
        event = self._take()
        if isinstance(event, ipc.Failed):
            refuse = _REFUSALS.get(event.code, refusals.internal)
            raise refuse()
        return self._joined(event) if isinstance(event, ipc.Chunk) else event

    def _take(self) -> Event:
        event = self._events.popleft()
        if isinstance(event, ipc.Chunk):
            self._waiting -= len(event.text) + 1
        return event

    def _joined(self, first: ipc.Chunk) -> ipc.Chunk:
        """Join *first* with what waits behind it: a slow client gets fewer, larger pieces."""
        texts = [first.text]
        while len(texts) < MOST_JOINED and self._events and isinstance(following := self._events[0], ipc.Chunk):
            texts.append(following.text)
            self._take()
        return first if len(texts) == 1 else ipc.Chunk(id=first.id, text="".join(texts))

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = loop.call_at(self._deadline, self._expire)
        try:
            await self._wake
        finally:
            timer.cancel()
            self._wake = None

    def _expire(self) -> None:
        self.cancel()
        self.fail(refusals.deadline())

    def cancel(self) -> None:
        """Stop computing at the next token; safe at any time."""
        self._link.cancel(self)


class EngineLink:
    """The gateway's end of one engine's socket."""

    def __init__(self, info: ipc.EngineUp, sock: socket.socket, queue: int, on_stuck: Callable[[str], None]) -> None:
        """Serve *info*.model over *sock* in the running loop; at most *queue* requests wait for a slot."""
        self.info = info
        self._queue_limit = queue
        self._channel = AsyncChannel(sock, ipc.FromEngine)
        self._on_stuck = on_stuck
        self._calls: dict[int, Call] = {}
        self._numbers = itertools.count(1)
        self._queue: collections.deque[Turn] = collections.deque()
        self._taken = 0
        self._reader = asyncio.ensure_future(self._read())
        self._down: Refusal | None = None
        self._held = False
        self._successor: EngineLink | None = None

    @property
    def running(self) -> int:
        """How many requests hold a slot."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many requests wait for one."""
        return len(self._queue)

    async def start(self, kind: str, params: dict[str, Any], *, seconds: float) -> Call:
        """Wait for a slot (within *seconds*), then send the request.

        Raises:
            ApiError: 429 the queue is full; 503 the engine is gone; 504 no slot in time.

        """
        deadline = asyncio.get_running_loop().time() + seconds
        link = await self.take_slot(seconds)
        return link.send(kind, params, deadline)

    def send(self, kind: str, params: dict[str, Any], deadline: float) -> Call:
        """Send a request that holds a slot here; *deadline* is in the loop's clock.

        Raises:
            ApiError: 503 the engine is gone; 413 the request is too large.

        """
        call = Call(self, next(self._numbers), deadline)
        self._calls[call.number] = call
        try:
            left = max(deadline - asyncio.get_running_loop().time(), 0.001)
            self._channel.post(ipc.Generate(id=call.number, kind=kind, params=params, deadline=left))
        except (ChannelClosed, OperationError):
            self._end(call)
            why = self._down or _gone
            raise why() from None
        except ValueError:
            self._end(call)
            raise refusals.too_large("the request is too large for the engine") from None
        return call

    async def take_slot(self, seconds: float) -> EngineLink:
        """Wait for a slot and return the link that has it: this one, or one that took over meanwhile."""
        if self._successor:
            return await self._successor.take_slot(seconds)
        if self._down:
            raise self._down()
        if not self._held and self._taken < self.info.slots and not self._queue:
            self._taken += 1
            return self
        if len(self._queue) >= self._queue_limit + (self.info.slots if self._held else 0):
            raise refusals.busy(1 + len(self._queue) // max(self.info.slots, 1))
        turn: Turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            return await asyncio.wait_for(asyncio.shield(turn), seconds)
        except TimeoutError:
            self.leave(turn)
            raise refusals.deadline() from None
        except BaseException:
            self.leave(turn)
            raise

    def leave(self, turn: Turn) -> None:
        """Give up a place in the queue, or the slot that came at the same moment."""
        if turn.done():
            if not turn.cancelled() and turn.exception() is None:
                turn.result().free_slot()
        elif turn in self._queue:
            self._queue.remove(turn)
        elif self._successor:
            self._successor.leave(turn)

    def free_slot(self) -> None:
        """Take back a slot."""
        self._taken -= 1
        self._grant()
        self._end_when_idle()

    def _grant(self) -> None:
        """Give free slots to those who waited longest."""
        while self._queue and not self._held and self._taken < self.info.slots:
            turn = self._queue.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(self)

    # -- giving the model to another engine

    def hold(self) -> None:
        """Start nothing more; what waits, and what comes, waits for a successor. Closes once it is idle."""
        self._held = True
        self._end_when_idle()

    def retire(self, successor: EngineLink) -> None:
        """Leave everything that has not begun to *successor*; close once it is idle."""
        self._successor = successor
        self._on_stuck = lambda _model: self.close(_gone)  # the agent would replace the engine that took over
        successor._queue.extend(self._queue)
        self._queue.clear()
        successor._grant()
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        if self._taken == 0 and self._successor:
            self.close(_gone)
        elif self._taken == 0 and self._held:
            self._drop(_gone)

    async def _read(self) -> None:
        try:
            async for event, _ in self._channel:
                self._dispatch(event)
        except UntrustedDataError:
            self._on_stuck(self.info.model)  # an engine that breaks the protocol is not one to keep
        if self._held and not self._successor:
            self._drop(_gone)
        else:
            self.close(_gone)

    def _dispatch(self, event: Event) -> None:
        call = self._calls.get(event.id)
        if call is None:
            return
        if not isinstance(event, ipc.Chunk):
            self._end(call)
        call.push(event)

    def _end(self, call: Call) -> None:
        if not call.ended:
            call.ended = True
            self._calls.pop(call.number, None)
            self.free_slot()

    def cancel(self, call: Call) -> None:
        """Ask the engine to stop *call*; watch that it does."""
        if call.ended or call.cancelling:
            return
        call.cancelling = True
        try:
            self._channel.post(ipc.Cancel(id=call.number))
        except (ChannelClosed, OperationError):
            return
        asyncio.get_running_loop().call_later(CANCEL_GRACE, self._judge, call)

    def _judge(self, call: Call) -> None:
        if not call.ended and not self._down:
            self._on_stuck(self.info.model)

    @property
    def serving(self) -> bool:
        """Whether the engine is there."""
        return self._down is None

    def close(self, why: Refusal) -> None:
        """End every request with *why* and drop the link; on a closed link, only change the reason."""
        was_down, self._down = self._down, why
        if was_down:
            return
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(why())
        self._drop(why)

    def _drop(self, why: Refusal) -> None:
        """End what runs with *why* and let go of the engine; the queue stays."""
        for call in list(self._calls.values()):
            call.ended = True
            call.fail(why())
        self._taken -= len(self._calls)
        self._calls.clear()
        self._channel.close()
        self._reader.cancel()


class Engines:
    """Every model this device serves, by name: up, or known and down."""

    def __init__(self, models: Iterable[str], *, queue: int, on_stuck: Callable[[str], None]) -> None:
        """Know *models* before they are up; report engines that ignore a cancel to *on_stuck*."""
        self._queue = queue
        self._on_stuck = on_stuck
        self._links: dict[str, EngineLink] = {}
        self._down: dict[str, Refusal] = dict.fromkeys(models, _gone)
        self._retired: list[EngineLink] = []

    def up(self, info: ipc.EngineUp, sock: socket.socket) -> None:
        """Serve *info*.model over *sock* from now on; an older link of the same model ends what it began."""
        old = self._links.get(info.model)
        self._down.pop(info.model, None)
        link = self._links[info.model] = EngineLink(info, sock, self._queue, self._on_stuck)
        if old:
            old.retire(link)
            self._retired = [retired for retired in (*self._retired, old) if retired.serving]

    def hold(self, model: str) -> None:
        """Start nothing more of *model* until another engine of it is up; requests wait in the queue meanwhile."""
        if link := self._links.get(model):
            link.hold()

    def down(self, message: ipc.EngineDown) -> None:
        """Stop serving a model until it is `up` again."""

        def why() -> ApiError:
            if message.reason == _QUARANTINED:
                return refusals.quarantined()
            return refusals.engine_down(message.retry_after)

        self._down[message.model] = why
        if link := self._links.pop(message.model, None):
            link.close(why)

    def find(self, model: str) -> EngineLink:
        """Return the link of *model*.

        Raises:
            ApiError: 404 nobody knows that name; 503 it is known and down.

        """
        if link := self._links.get(model):
            return link
        if why := self._down.get(model):
            raise why()
        raise refusals.no_model(model)

    def __iter__(self) -> Iterator[EngineLink]:
        """Iterate over the links there are."""
        return iter(list(self._links.values()))

    def states(self) -> list[tuple[str, EngineLink | None]]:
        """Return every model of this device with its link, None while it is down."""
        return [(name, self._links.get(name)) for name in sorted({*self._down, *self._links})]

    @property
    def ready(self) -> bool:
        """Whether at least one model can answer."""
        return any(link.serving for link in self._links.values())

    def close(self) -> None:
        """Drop every link."""
        for link in (*self, *self._retired):
            link.close(_gone)
