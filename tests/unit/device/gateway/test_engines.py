"""Engine links: slots belong to the engine's truth, queues are bounded, nothing waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from casemate.device.channel import AsyncChannel, pair
from casemate.device.gateway import engines as module
from casemate.device.gateway.engines import Engines
from casemate.device.gateway.refusals import ApiError
from casemate.formats import ipc


class World:
    """A link whose engine end the test plays by hand."""

    def __init__(self, slots=1, queue=1):
        self.stuck: list[str] = []
        self.engines = Engines(("m", "later"), queue=queue, on_stuck=self.stuck.append)
        ours, theirs = pair()
        self.engines.up(ipc.EngineUp(model="m", digest="d", slots=slots, context=10), ours)
        self.link = self.engines.find("m")
        self.far = AsyncChannel(theirs, ipc.ToEngine)

    async def heard(self):
        return (await asyncio.wait_for(self.far.recv(), 5))[0]

    def say(self, message):
        self.far.post(message)

    def close(self):
        self.far.close()
        self.engines.close()


def run(scenario, **options):
    async def main():
        world = World(**options)
        try:
            await asyncio.wait_for(scenario(world), 20)
        finally:
            world.close()
            await asyncio.sleep(0)

    asyncio.run(main())


async def start(world, seconds=5.0):
    return await world.link.start("chat", {"x": 1}, seconds=seconds)


async def settled(condition):
    """Wait for what the link does in its own turns of the loop."""
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)


async def refused(awaitable):
    with pytest.raises(ApiError) as caught:
        await awaitable
    return caught.value


def test_a_request_runs_to_its_end():
    async def scenario(world):
        call = await start(world)
        request = await world.heard()
        assert (request.kind, request.params) == ("chat", {"x": 1})
        world.say(ipc.Chunk(request.id, "a"))
        assert (await call.next()).text == "a"
        world.say(ipc.Done(request.id, "stop", 1, 2))
        assert (await call.next()).completion_tokens == 2
        assert world.link.running == 0

    run(scenario)


def test_chunks_that_waited_are_joined_but_never_with_the_end():
    async def scenario(world):
        call = await start(world)
        request = await world.heard()
        for text in "abcdef":
            world.say(ipc.Chunk(request.id, text))
        world.say(ipc.Done(request.id))
        await settled(lambda: call.pieces == 6)
        pieces = []
        while not isinstance(event := await call.next(), ipc.Done):
            pieces.append(event.text)
        assert "".join(pieces) == "abcdef"
        assert len(pieces) < 6
        assert call.pieces == 6

    run(scenario)


def test_the_queue_is_bounded_and_in_order():
    async def scenario(world):
        first = await start(world)
        second = asyncio.ensure_future(start(world))
        await asyncio.sleep(0)
        error = await refused(start(world))
        assert (error.status, error.code) == (429, "engine_busy")
        assert int(error.headers["retry-after"]) >= 1
        world.say(ipc.Done((await world.heard()).id))
        await first.next()
        assert (await second).number == (await world.heard()).id
        assert (world.link.running, world.link.waiting) == (1, 0)

    run(scenario)


def test_a_waiter_that_gives_up_leaves_no_hole():
    async def scenario(world):
        first = await start(world)
        error = await refused(start(world, seconds=0.05))
        assert error.status == 504
        gone = asyncio.ensure_future(start(world))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert world.link.waiting == 0
        world.say(ipc.Done((await world.heard()).id))
        await first.next()
        assert world.link.running == 0
        await start(world)

    run(scenario)


def test_a_missed_deadline_cancels_and_keeps_the_slot_until_the_engine_says_so():
    async def scenario(world):
        call = await start(world, seconds=0.1)
        request = await world.heard()
        error = await refused(call.next())
        assert (error.status, error.code) == (504, "deadline_exceeded")
        assert isinstance(await world.heard(), ipc.Cancel)
        assert world.link.running == 1
        world.say(ipc.Done(request.id, "cancelled"))
        await settled(lambda: world.link.running == 0)
        assert world.stuck == []

    run(scenario)


def test_an_engine_that_ignores_a_cancel_is_reported_once(monkeypatch):
    monkeypatch.setattr(module, "CANCEL_GRACE", 0.05)

    async def scenario(world):
        call = await start(world)
        call.cancel()
        call.cancel()
        await settled(lambda: world.stuck)
        await asyncio.sleep(0.1)  # a second report would come now
        assert world.stuck == ["m"]

    run(scenario)


def test_a_dying_engine_ends_everyone_with_503():
    async def scenario(world):
        call = await start(world)
        waiting = asyncio.ensure_future(start(world))
        request = await world.heard()
        world.say(ipc.Chunk(request.id, "half"))
        await asyncio.sleep(0.05)
        world.far.close()
        assert (await call.next()).text == "half"
        for error in (await refused(call.next()), await refused(waiting), await refused(start(world))):
            assert (error.status, error.code) == (503, "engine_unavailable")
            assert "retry-after" in error.headers

    run(scenario)


def test_the_agents_word_about_a_dead_engine_counts():
    async def scenario(world):
        world.engines.down(ipc.EngineDown(model="m", reason="needs triage", retry_after=None))
        with pytest.raises(ApiError) as caught:
            world.engines.find("m")
        assert caught.value.headers["x-should-retry"] == "false"
        assert not world.engines.ready
        assert world.engines.states() == [("later", None), ("m", None)]

    run(scenario)


def test_models_that_are_not_up_yet_are_503_and_unknown_ones_404():
    async def scenario(world):
        with pytest.raises(ApiError) as caught:
            world.engines.find("later")
        assert caught.value.status == 503
        with pytest.raises(ApiError) as caught:
            world.engines.find("never")
        assert caught.value.status == 404

    run(scenario)


def test_a_restarted_engine_takes_over():
    async def scenario(world):
        call = await start(world)
        world.far.close()
        assert (await refused(call.next())).status == 503
        await replace(world)
        await start(world)
        assert isinstance(await world.heard(), ipc.Generate)

    run(scenario)


async def replace(world, slots=1):
    """Bring up another engine of the same model; return the far end of the first."""
    ours, theirs = pair()
    world.engines.up(ipc.EngineUp(model="m", digest="d2", slots=slots, context=10), ours)
    old, world.far = world.far, AsyncChannel(theirs, ipc.ToEngine)
    world.link = world.engines.find("m")
    return old


async def closed(channel):
    async with asyncio.timeout(5):
        async for _ in channel:
            pass


def test_a_replaced_engine_ends_what_it_began_and_is_let_go():
    async def scenario(world):
        call = await start(world)
        request = (await world.heard()).id
        old = await replace(world)
        old.post(ipc.Chunk(request, "still "))
        old.post(ipc.Done(request))
        assert (await call.next()).text == "still "
        assert isinstance(await call.next(), ipc.Done)
        await closed(old)
        old.close()

    run(scenario)


def test_what_waited_and_what_found_the_old_link_goes_to_the_new_engine():
    async def scenario(world):
        first = world.link
        await start(world)
        waiting = asyncio.ensure_future(start(world))
        await asyncio.sleep(0)
        old = await replace(world, slots=2)
        late = await first.start("chat", {"x": 2}, seconds=5)
        assert {(await waiting).number, late.number} == {(await world.heard()).id, (await world.heard()).id}
        assert world.link.running == 2
        old.close()

    run(scenario)


def test_a_held_engine_starts_nothing_and_its_queue_outlives_it():
    async def scenario(world):
        running = await start(world)
        request = (await world.heard()).id
        world.engines.hold("m")
        waiting = [asyncio.ensure_future(start(world)) for _ in range(2)]  # the queue's one, and the one slot's
        await asyncio.sleep(0)
        assert (await refused(start(world))).code == "engine_busy"
        world.say(ipc.Done(request))
        await running.next()
        await closed(world.far)
        world.far.close()
        assert not any(turn.done() for turn in waiting)
        await replace(world, slots=2)
        assert [(await turn).number for turn in waiting] == [(await world.heard()).id for _ in range(2)]

    run(scenario)


def test_a_held_queue_is_refused_when_no_successor_comes():
    async def scenario(world):
        world.engines.hold("m")
        waiting = asyncio.ensure_future(start(world))
        await asyncio.sleep(0)
        world.engines.down(ipc.EngineDown(model="m", reason="gone", retry_after=3))
        assert (await refused(waiting)).status == 503

    run(scenario)


def test_who_gives_up_after_the_switch_leaves_no_hole():
    async def scenario(world):
        await start(world)
        waiting = asyncio.ensure_future(start(world))
        await asyncio.sleep(0)
        old = await replace(world)
        await asyncio.sleep(0)  # the new engine's slot went to the waiter
        gives_up = asyncio.ensure_future(start(world))
        await asyncio.sleep(0)
        gives_up.cancel()
        await asyncio.gather(gives_up, return_exceptions=True)
        assert (world.link.running, world.link.waiting) == (1, 0)
        world.say(ipc.Done((await waiting).number))
        await settled(lambda: world.link.running == 0)
        old.close()

    run(scenario)


def test_a_replaced_engine_that_ignores_a_cancel_is_dropped_and_its_successor_is_not_blamed(monkeypatch):
    monkeypatch.setattr(module, "CANCEL_GRACE", 0.05)

    async def scenario(world):
        call = await start(world)
        await world.heard()
        old = await replace(world)
        call.cancel()
        assert isinstance((await asyncio.wait_for(old.recv(), 5))[0], ipc.Cancel)
        await closed(old)
        assert world.stuck == []
        old.close()

    run(scenario)


@pytest.mark.parametrize(
    ("code", "status"),
    [("bad_request", 400), ("too_long", 400), ("deadline", 504), ("busy", 429), ("internal", 500), ("?", 500)],
)
def test_engine_refusals_become_api_errors_without_the_engines_words(code, status):
    async def scenario(world):
        call = await start(world)
        world.say(ipc.Failed((await world.heard()).id, code, "private words"))
        error = await refused(call.next())
        assert error.status == status
        assert "private" not in error.message

    run(scenario)


def test_events_for_requests_nobody_made_are_ignored():
    async def scenario(world):
        world.say(ipc.Chunk(99, "x"))
        world.say(ipc.Done(99))
        call = await start(world)
        world.say(ipc.Done((await world.heard()).id))
        await call.next()
        assert world.link.running == 0

    run(scenario)


def test_an_engine_that_breaks_the_protocol_is_dropped_and_reported():
    async def scenario(world):
        call = await start(world)
        world.far.socket.send(b"\xff\xff\xff\xff nonsense")
        assert (await refused(call.next())).status == 503
        assert world.stuck == ["m"]

    run(scenario)


def test_a_request_too_large_for_a_frame_is_413_and_frees_its_slot():
    async def scenario(world):
        error = await refused(world.link.start("chat", {"x": "y" * (ipc.FRAME_LIMIT + 1)}, seconds=5))
        assert error.status == 413
        assert world.link.running == 0

    run(scenario)
