from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.device.channel import Channel, pair
from casemate.device.engine.requests import RefusedError
from casemate.device.engine.serving import Outcome, Serving, Slots
from casemate.formats import ipc

WITHIN = 10.0


class Scripted:
    """A model that says "a" until it is told to stop, or to end; a test holds the strings."""

    def __init__(self, pieces=3):
        self.pieces = pieces
        self.gate = threading.Event()
        self.gate.set()
        self.running = 0
        self.entered = threading.Event()
        self.full = threading.Event()  # two at once
        self.most = 0
        self.calls = []
        self.stopped = 0
        self.lock = threading.Lock()

    def run(self, request, slot, *, reuse, emit):
        with self.lock:
            self.calls.append((request.tenant, slot, reuse))
            self.running += 1
            self.entered.set()
            self.most = max(self.most, self.running)
            if self.running == 2:
                self.full.set()
        try:
            prompt = request.body["prompt"]
            if prompt == "refuse":
                raise RefusedError("too_long", "no")
            if prompt == "crash":
                raise RuntimeError("with the prompt in it: crash")
            if prompt == "vectors":
                return Outcome("stop", 1, 0, [[0.123456789012345] * 1000 for _ in range(1000)])
            for count in range(self.pieces):
                self.gate.wait(WITHIN)
                if not emit("a"):
                    self.stopped += 1
                    return Outcome("cancelled", 1, count)
            return Outcome("stop", 1, self.pieces)
        finally:
            with self.lock:
                self.running -= 1


class Desk:
    """The gateway's end of a `Serving`."""

    def __init__(self, model, *, slots=2, waiting=2, stall=100.0):
        ours, theirs = pair()
        self.link = Channel(ours, ipc.FromEngine)
        self.far = Channel(theirs, ipc.ToEngine)
        self.stalled = threading.Event()
        self.closed = threading.Event()
        self.model = model
        self.serving = Serving(
            self.far,
            model,
            slots=slots,
            waiting=waiting,
            context=64,
            stall=stall,
            on_stall=self.stalled.set,
            on_closed=self.closed.set,
        )
        self.serving.start()

    def ask(self, number, prompt="go", deadline=WITHIN, **params):
        self.serving.submit(ipc.Generate(number, "completion", {"prompt": prompt, **params}, deadline))

    def endings(self, count):
        """Return the endings of *count* requests by id and the number of chunks of each."""
        ends, chunks = {}, {}
        while len(ends) < count:
            message = self.link.recv(WITHIN)[0]
            if isinstance(message, ipc.Chunk):
                assert message.id not in ends, "text after the ending"
                chunks[message.id] = chunks.get(message.id, 0) + 1
            else:
                assert message.id not in ends, "two endings"
                ends[message.id] = message
        return ends, chunks


@pytest.fixture
def desk():
    made = []

    def make(model=None, **options):
        made.append(Desk(model or Scripted(), **options))
        return made[-1]

    yield make
    for each in made:
        each.model.gate.set()
        each.link.close()


def test_a_request_streams_and_ends_once(desk):
    at = desk()
    at.ask(1)
    ends, chunks = at.endings(1)
    assert chunks == {1: 3}
    assert ends[1] == ipc.Done(1, "stop", 1, 3)


def test_slots_run_side_by_side_and_the_rest_waits(desk):
    model = Scripted()
    model.gate.clear()
    at = desk(model, slots=2, waiting=3)
    for number in range(1, 6):
        at.ask(number)
    assert model.full.wait(WITHIN)
    model.gate.set()
    ends, _ = at.endings(5)
    assert {type(end) for end in ends.values()} == {ipc.Done}
    assert model.most == 2


def test_a_full_queue_says_busy(desk):
    model = Scripted()
    model.gate.clear()
    at = desk(model, slots=1, waiting=1)
    for number in (1, 2, 3):
        at.ask(number)
    ends, _ = at.endings(1)
    assert ends[3].code == "busy"
    model.gate.set()
    assert set(at.endings(2)[0]) == {1, 2}


def test_an_id_in_use_is_refused(desk):
    model = Scripted()
    model.gate.clear()
    at = desk(model)
    at.ask(1)
    at.ask(1)
    ends, _ = at.endings(1)
    assert ends[1].code == "bad_request"


def test_cancel_stops_at_the_next_token(desk):
    model = Scripted(pieces=1000)
    at = desk(model)
    at.ask(1)
    assert isinstance(at.link.recv(WITHIN)[0], ipc.Chunk)
    model.gate.clear()
    at.serving.cancel(ipc.Cancel(1))
    model.gate.set()
    ends, _ = at.endings(1)
    assert ends[1].finish_reason == "cancelled"
    assert ends[1].completion_tokens < 1000
    assert model.stopped == 1


def test_a_cancel_is_answered_even_in_the_middle_of_a_long_step(desk):
    model = Scripted()
    model.gate.clear()
    at = desk(model, slots=1)
    at.ask(1)
    assert model.entered.wait(WITHIN)
    at.serving.cancel(ipc.Cancel(1))
    at.serving.tick(time.monotonic() + 1)
    at.serving.tick(time.monotonic() + 3)
    assert at.endings(1)[0][1] == ipc.Done(1, "cancelled")
    at.ask(2)  # waits: the slot is not free before the model comes back
    model.gate.set()
    assert at.endings(1)[0][2].finish_reason == "stop"
    assert model.most == 1


def test_a_waiting_request_is_cancelled_at_once_and_unknown_ids_are_ignored(desk):
    model = Scripted()
    model.gate.clear()
    at = desk(model, slots=1)
    at.ask(1)
    at.ask(2)
    at.serving.cancel(ipc.Cancel(99))
    at.serving.cancel(ipc.Cancel(2))
    ends, _ = at.endings(1)
    assert ends[2].finish_reason == "cancelled"
    model.gate.set()
    assert at.endings(1)[0][1].finish_reason == "stop"
    assert len(model.calls) == 1


def test_a_deadline_ends_the_request_even_when_the_model_is_silent(desk):
    model = Scripted()
    model.gate.clear()
    at = desk(model, slots=1)
    at.ask(1, deadline=5)
    at.ask(2, deadline=5)
    at.serving.tick(time.monotonic() + 4)
    at.serving.tick(time.monotonic() + 6)
    ends, chunks = at.endings(2)
    assert {end.code for end in ends.values()} == {"deadline"}
    assert not chunks
    model.gate.set()  # the slot comes back and serves again
    at.ask(3)
    assert at.endings(1)[0][3].finish_reason == "stop"


def test_a_model_that_stays_silent_is_reported(desk):
    model = Scripted()
    model.gate.clear()
    at = desk(model, stall=30)
    at.ask(1, deadline=5)
    assert model.entered.wait(WITHIN)
    at.serving.tick(time.monotonic() + 29)
    assert not at.stalled.is_set()
    at.serving.tick(time.monotonic() + 31)
    assert at.stalled.is_set()


def test_the_clock_ticks_by_itself(desk):
    model = Scripted()
    model.gate.clear()
    at = desk(model, slots=1)
    at.serving.start_clock()
    at.ask(1, deadline=0.0)
    assert at.endings(1)[0][1].code == "deadline"


def test_refusals_and_crashes_end_the_request_not_the_engine(desk):
    at = desk()
    for number, prompt in ((1, "refuse"), (2, "crash")):
        at.ask(number, prompt)
    ends, _ = at.endings(2)
    assert ends[1] == ipc.Failed(1, "too_long", "no")
    assert ends[2].code == "internal"
    assert "prompt" not in ends[2].message
    at.ask(3)
    assert at.endings(1)[0][3].finish_reason == "stop"


def test_an_answer_over_the_frame_limit_is_a_refusal(desk):
    at = desk()
    at.ask(1, "vectors")
    assert at.endings(1)[0][1].code == "too_long"


def test_a_bad_request_never_reaches_the_model(desk):
    at = desk()
    at.ask(1, n_discard=-1)
    assert at.endings(1)[0][1].code == "bad_request"
    assert not at.model.calls


def test_a_gateway_that_is_gone_ends_the_engine(desk):
    at = desk()
    at.link.close()
    at.ask(1)
    assert at.closed.wait(WITHIN)


def test_a_slot_keeps_its_cache_for_the_same_tenant_only(desk):
    at = desk(slots=1)
    for number, tenant in enumerate(["a", "a", "b", "a", None, None], 1):
        at.ask(number, tenant=tenant)
        at.endings(1)
    assert [reuse for _, _, reuse in at.model.calls] == [False, True, False, False, False, False]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", None])), max_size=40))
def test_slots_are_never_given_twice_and_never_shared_between_tenants(steps):
    slots, busy, last = Slots(3), [], {}
    for take, tenant in steps:
        if take:
            place = slots.take(tenant)
            assert (place is None) == (len(busy) == 3)
            if place is not None:
                slot, reuse = place
                assert slot not in busy
                assert reuse == (tenant is not None and last.get(slot) == tenant)
                busy.append(slot)
                last[slot] = tenant
        elif busy:
            slots.release(busy.pop(0))


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from(["go", "refuse", "crash"]), st.booleans(), st.sampled_from([0.0, WITHIN])),
        min_size=1,
        max_size=12,
    )
)
def test_every_request_ends_exactly_once_whatever_happens(requests):
    at = Desk(Scripted(), slots=2, waiting=4)
    for number, (prompt, cancel, deadline) in enumerate(requests, 1):
        at.ask(number, prompt, deadline)
        if cancel:
            at.serving.cancel(ipc.Cancel(number))
        at.serving.tick(time.monotonic())
    ends, _ = at.endings(len(requests))
    assert set(ends) == set(range(1, len(requests) + 1))
    time.sleep(0.01)
    at.link.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        at.link.socket.recv(1)
    at.link.close()
