"""Many requests over one link: slots, cancels, deadlines, and exactly one ending for each request.

One thread per slot runs the model; a clock thread ends requests whose deadline passed and notices a model that no
longer calls back. The main loop (`__main__`) reads the link and never waits for the model.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from casemate.device.channel import Channel, ChannelClosed
from casemate.device.engine.requests import RefusedError, Request, parse
from casemate.formats import ipc

_Reply = ipc.Chunk | ipc.Done | ipc.Failed

TICK: Final = 0.05
MAX_DEADLINE: Final = 3600.0
CANCEL_ANSWER: Final = 2.0
"""Seconds after which a cancel is answered although the model is still in the middle of a long prompt's step."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a request ended by itself."""

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    vectors: list[list[float]] | None = None


class Model(Protocol):
    """What runs requests: llama.cpp, or a recording."""

    def run(self, request: Request, slot: int, *, reuse: bool, emit: Callable[[str], bool]) -> Outcome:
        """Run *request*; stop soon after *emit* says False. Raises `RefusedError`."""
        ...


@dataclasses.dataclass(eq=False)
class Job:
    """One request from arrival to its ending. Guarded by the lock of `Serving`."""

    id: int
    request: Request
    expires: float
    running: bool = False
    stopping: bool = False  # cancelled or out of time: the next token is the last
    cancelled: float = math.inf  # when
    ended: bool = False  # Done or Failed has been sent
    touched: float = 0.0  # when the model last called back


def _out_of_time(job: Job) -> ipc.Failed:
    return ipc.Failed(job.id, "deadline", "the request ran out of time")


def _is_over(job: Job) -> bool:
    return job.stopping or time.monotonic() >= job.expires


def _stopped(job: Job, done: Outcome) -> _Reply:
    """Return the ending of a job that was told to stop."""
    if time.monotonic() >= job.expires:
        return _out_of_time(job)
    return ipc.Done(job.id, "cancelled", done.prompt_tokens, done.completion_tokens)


class Slots:
    """Which slot runs next, preferring one that last served the same tenant. Pure."""

    def __init__(self, count: int) -> None:
        """All *count* slots are free and belong to nobody."""
        self.free = list(range(count))
        self._tenants: dict[int, str | None] = dict.fromkeys(range(count))

    def take(self, tenant: str | None) -> tuple[int, bool] | None:
        """Return a free slot and whether its cache is the tenant's own; None when all are busy."""
        if not self.free:
            return None
        mine = [slot for slot in self.free if tenant is not None and self._tenants[slot] == tenant]
        slot = mine[0] if mine else self.free[0]
        self.free.remove(slot)
        self._tenants[slot] = tenant
        return slot, bool(mine)

    def release(self, slot: int) -> None:
        """Give *slot* back; the longest free one is taken first."""
        self.free.append(slot)


class Serving:
    """The requests in flight on one link."""

    def __init__(
        self,
        link: Channel,
        model: Model,
        *,
        slots: int,
        waiting: int,
        context: int,
        stall: float,
        on_stall: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        """Serve *slots* requests at a time and hold up to *waiting* more.

        *on_stall* is called when a running request's model was silent for *stall* seconds, *on_closed* when the peer
        is gone; both end the process.
        """
        self._link = link
        self._model = model
        self._context = context
        self._limit = waiting
        self._stall = stall
        self._on_stall = on_stall
        self._on_closed = on_closed
        self._lock = threading.Lock()  # the tables below
        self._wire = threading.Lock()  # one frame at a time
        self._jobs: dict[int, Job] = {}
        self._waiting: collections.deque[Job] = collections.deque()
        self._slots = Slots(slots)
        self._inboxes: Mapping[int, queue.SimpleQueue[tuple[Job, bool]]] = {
            slot: queue.SimpleQueue() for slot in range(slots)
        }

    def start(self) -> None:
        """Start a thread for each slot (before the run filter or after: only thread clones are needed)."""
        for slot in self._inboxes:
            threading.Thread(target=self._work, args=(slot,), daemon=True, name=f"slot-{slot}").start()

    def start_clock(self) -> None:
        """Start the thread that calls `tick`."""
        threading.Thread(target=self._watch, daemon=True, name="clock").start()

    # -- called by the main loop

    def submit(self, message: ipc.Generate) -> None:
        """Take a request: run it, hold it, or refuse it."""
        try:
            request = parse(message, context=self._context)
        except RefusedError as refusal:
            self._send(ipc.Failed(message.id, refusal.code, refusal.message))
            return
        expires = time.monotonic() + min(max(message.deadline, 0.0), MAX_DEADLINE)
        job = Job(message.id, request, expires)
        with self._lock:
            full = not self._slots.free and len(self._waiting) >= self._limit
            refused = "busy" if full else "bad_request" if job.id in self._jobs else ""
            if not refused:
                self._jobs[job.id] = job
                self._waiting.append(job)
                self._dispatch()
        if refused:
            self._send(ipc.Failed(message.id, refused, "the engine's queue is full" if full else "the id is in use"))

    def cancel(self, message: ipc.Cancel) -> None:
        """Stop a request at its next token; one that still waits ends at once. Unknown ids have already ended."""
        with self._lock:
            job = self._jobs.get(message.id)
            if job is None:
                return
            job.stopping = True
            job.cancelled = min(job.cancelled, time.monotonic())
            if job.running:
                return
            self._waiting.remove(job)
            del self._jobs[job.id]
        self._end(job, ipc.Done(job.id, "cancelled"))

    # -- called with the lock held

    def _dispatch(self) -> None:
        while self._waiting:
            place = self._slots.take(self._waiting[0].request.tenant)
            if place is None:
                return
            job = self._waiting.popleft()
            job.running = True
            job.touched = time.monotonic()
            self._inboxes[place[0]].put((job, place[1]))

    # -- slot threads

    def _work(self, slot: int) -> None:
        while True:
            job, reuse = self._inboxes[slot].get()
            ending = self._run(job, slot, reuse=reuse)
            with self._lock:
                del self._jobs[job.id]
                self._slots.release(slot)
                self._dispatch()
            self._end(job, ending)

    def _run(self, job: Job, slot: int, *, reuse: bool) -> _Reply:
        def emit(text: str) -> bool:
            job.touched = time.monotonic()
            job.stopping = job.stopping or job.touched >= job.expires
            if not job.stopping and text:
                self._chunk(job, text)
            return not job.stopping

        try:
            if _is_over(job):
                return _stopped(job, Outcome("", 0, 0))
            done = self._model.run(job.request, slot, reuse=reuse, emit=emit)
        except RefusedError as refusal:
            return ipc.Failed(job.id, refusal.code, refusal.message)
        except Exception:  # noqa: BLE001 - a fault of ours ends the request, not the engine; its text may quote a prompt
            return ipc.Failed(job.id, "internal", "the engine failed on this request")
        if job.stopping:
            return _stopped(job, done)
        return ipc.Done(job.id, done.finish_reason, done.prompt_tokens, done.completion_tokens, done.vectors)

    # -- the clock thread

    def _watch(self) -> None:
        while True:
            time.sleep(TICK)
            self.tick(time.monotonic())

    def tick(self, now: float) -> None:
        """End what has expired by *now*, answer old cancels, report a model that has been silent too long.

        A job that ends here keeps its slot until the model comes back.
        """
        with self._lock:
            late = [job for job in self._jobs.values() if now >= job.expires and not job.stopping]
            for job in late:
                job.stopping = True
                if not job.running:
                    self._waiting.remove(job)
                    del self._jobs[job.id]
            left = [job for job in self._jobs.values() if now - job.cancelled > CANCEL_ANSWER]
            stalled = any(job.running and now - job.touched > self._stall for job in self._jobs.values())
        for job in late:
            self._end(job, _out_of_time(job))
        for job in left:
            self._end(job, ipc.Done(job.id, "cancelled"))
        if stalled:
            self._on_stall()

    # -- the wire

    def _chunk(self, job: Job, text: str) -> None:
        with self._wire:
            if not job.ended:
                self._send_locked(ipc.Chunk(job.id, text))

    def _end(self, job: Job, message: _Reply) -> None:
        with self._wire:
            if not job.ended:
                job.ended = True
                self._send_locked(message)

    def _send(self, message: _Reply) -> None:
        with self._wire:
            self._send_locked(message)

    def _send_locked(self, message: _Reply) -> None:
        try:
            self._link.send(message)
        except ValueError:  # over the frame limit: only vectors can be
            self._send_locked(ipc.Failed(message.id, "too_long", "the answer is too large"))
        except (ChannelClosed, OSError):
            self._on_closed()
