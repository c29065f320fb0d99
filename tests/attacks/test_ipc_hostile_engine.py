"""A compromised engine lies on its socket: oversize, malformed and foreign frames, nested bombs, a descriptor flood.

The gateway, agent and vault must cut the link and go on; nothing but `UntrustedDataError` may come out of the reader.
The control reads the same bytes the way a trusting program would, and is hurt by them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from typing import Any

import msgspec
import pytest

from casemate.device import channel
from casemate.device.channel import AsyncChannel, Channel
from casemate.device.gateway import engines
from casemate.device.gateway.engines import EngineLink
from casemate.device.gateway.refusals import ApiError
from casemate.errors import UntrustedDataError
from casemate.formats import ipc

NESTED = b"[" * 100_000 + b"]" * 100_000


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


ATTACKS = {
    "oversize": struct.pack("<I", 0xFFFFFFFF),
    "not json": framed(b"\x00\x01\x02"),
    "not utf-8": framed(b'{"t":"chunk","id":1,"text":"\xff\xfe"}'),
    "not an object": framed(b"[]"),
    "empty": framed(b""),
    "a message of another link": framed(b'{"t":"weights","model":"m","bytes":1}'),
    "an unknown field": framed(b'{"t":"chunk","id":1,"text":"x","shell":"id"}'),
    "a wrong type": framed(b'{"t":"chunk","id":"1","text":{}}'),
    "a negative bill": framed(b'{"t":"done","id":1,"prompt_tokens":-1000000}'),
    "nested arrays": framed(b'{"t":"done","id":1,"vectors":' + NESTED + b"}"),
    "infinite numbers": framed(b'{"t":"done","id":1,"vectors":[[1e999]]}'),
}


@pytest.mark.parametrize("data", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_hostile_frame_closes_the_link_and_raises_nothing_else(data):
    ours, theirs = channel.pair()
    link = Channel(ours, ipc.FromEngine)
    theirs.sendall(data)
    with pytest.raises(UntrustedDataError) as caught:
        link.recv(5)
    assert caught.value.check in {"ipc-frame", "ipc-frame-size"}
    assert link.fileno() == -1
    theirs.close()


def test_the_same_sender_is_heard_when_it_tells_the_truth():
    ours, theirs = channel.pair()
    link = Channel(ours, ipc.FromEngine)
    theirs.sendall(framed(b'{"t":"chunk","id":1,"text":"hello"}'))
    assert link.recv(5) == (ipc.Chunk(id=1, text="hello"), [])
    theirs.close()
    link.close()


def test_control_a_trusting_reader_takes_the_lies():
    """Without the typed unions and limits: a foreign verb, a negative bill and a bomb all arrive."""
    assert json.loads(ATTACKS["a message of another link"][4:])["t"] == "weights"
    assert msgspec.json.decode(ATTACKS["a negative bill"][4:])["prompt_tokens"] < 0
    with pytest.raises(RecursionError):
        json.loads(ATTACKS["nested arrays"][4:])


def test_nested_facts_do_not_take_the_agent_down():
    """`facts` is free-form JSON, so its depth is bounded by the decoder alone."""
    with pytest.raises(UntrustedDataError):
        ipc.FrameReader(ipc.ChildToAgent).feed(framed(b'{"t":"ready","facts":{"a":' + NESTED + b"}}"))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def flood(sender: socket.socket, rounds: int) -> None:
    """Promise one large frame, then send it a byte at a time with sixteen descriptors on each byte."""
    sender.sendall(struct.pack("<I", 1 << 20))
    for _ in range(rounds):
        socket.send_fds(sender, [b"x"], [0] * 16)


def test_a_frame_that_never_ends_cannot_fill_our_descriptor_table():
    ours, theirs = channel.pair()
    before = open_descriptors()
    link = Channel(ours, ipc.FromEngine)
    flood(theirs, rounds=8)
    with pytest.raises(UntrustedDataError) as caught:
        link.recv(5)
    assert caught.value.check == "ipc-descriptors"
    theirs.close()
    assert open_descriptors() == before - 2


def test_control_a_reader_without_the_limit_collects_every_descriptor():
    ours, theirs = channel.pair()
    flood(theirs, rounds=8)
    got: list[int] = []
    ours.recv(4)
    for _ in range(8):
        got += socket.recv_fds(ours, 1, 16)[1]
    assert len(got) == 128
    for fd in got:
        os.close(fd)
    ours.close()
    theirs.close()


def gateway_meets(data: bytes) -> tuple[str, list[str], bool]:
    """Run one request against an engine that answers with *data*: (refusal code, engines reported, link serving)."""

    async def scenario() -> tuple[str, list[str], bool]:
        ours, theirs = channel.pair()
        stuck: list[str] = []
        info = ipc.EngineUp(model="m", digest="d", slots=1, context=512)
        link = EngineLink(info, ours, 2, stuck.append)
        call = await link.start("chat", {}, seconds=5)
        theirs.sendall(data)
        try:
            ended: Any = await asyncio.wait_for(call.next(), 10)
            code = type(ended).__name__
        except ApiError as refusal:
            code = refusal.code
        serving = link.serving
        link.close(lambda: ApiError(503, "engine_unavailable", "gone"))
        theirs.close()
        return code, stuck, serving

    return asyncio.run(scenario())


@pytest.mark.parametrize("name", ["not utf-8", "nested arrays", "a negative bill", "oversize"])
def test_the_gateway_refuses_the_request_and_reports_the_engine(name):
    assert gateway_meets(ATTACKS[name]) == ("engine_unavailable", ["m"], False)


def test_control_the_gateway_takes_an_honest_answer():
    assert gateway_meets(framed(b'{"t":"done","id":1}')) == ("Done", [], True)


def answer_without_end(*, limit: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """Have an engine write 8 MiB for a client that reads nothing: (characters that wait, engines reported)."""
    monkeypatch.setattr(engines, "MOST_WAITING", limit)

    async def scenario() -> tuple[int, list[str]]:
        ours, theirs = channel.pair()
        stuck: list[str] = []
        link = EngineLink(ipc.EngineUp(model="m", digest="d", slots=1, context=512), ours, 2, stuck.append)
        call = await link.start("chat", {}, seconds=60)
        liar = AsyncChannel(theirs, ipc.ToEngine)
        with contextlib.suppress(channel.ChannelClosed):
            for _ in range(128):
                await liar.send(ipc.Chunk(id=call.number, text="x" * 65536))
        await asyncio.sleep(0.1)
        waiting = sum(len(event.text) for event in call._events if isinstance(event, ipc.Chunk))
        link.close(lambda: ApiError(503, "engine_unavailable", "gone"))
        liar.close()
        return waiting, stuck

    return asyncio.run(scenario())


def test_an_answer_without_end_does_not_fill_the_gateways_memory(monkeypatch):
    waiting, stuck = answer_without_end(limit=1 << 20, monkeypatch=monkeypatch)
    assert waiting <= 1 << 20
    assert stuck == ["m"]


def test_control_without_the_limit_everything_waits_in_the_gateway(monkeypatch):
    assert answer_without_end(limit=1 << 40, monkeypatch=monkeypatch) == (128 * 65536, [])


def test_events_for_requests_nobody_made_are_dropped():
    """Text addressed to another request's number must not appear in any answer."""

    async def scenario() -> str:
        ours, theirs = channel.pair()
        info = ipc.EngineUp(model="m", digest="d", slots=2, context=512)
        link = EngineLink(info, ours, 2, lambda _: None)
        call = await link.start("chat", {}, seconds=5)
        for message in (
            ipc.Chunk(id=call.number + 1, text="not yours"),
            ipc.Done(id=call.number + 1),
            ipc.Chunk(id=call.number, text="yours"),
        ):
            theirs.sendall(ipc.encode(message))
        event = await asyncio.wait_for(call.next(), 5)
        link.close(lambda: ApiError(503, "engine_unavailable", "gone"))
        theirs.close()
        return event.text if isinstance(event, ipc.Chunk) else ""

    assert asyncio.run(scenario()) == "yours"


def test_an_async_link_reports_the_fault_once_and_stops_reading():
    async def scenario() -> None:
        ours, theirs = channel.pair()
        link = AsyncChannel(ours, ipc.FromEngine)
        theirs.sendall(ATTACKS["nested arrays"])
        for _ in range(2):
            with pytest.raises(UntrustedDataError):
                await asyncio.wait_for(link.recv(), 5)
        link.close()
        theirs.close()

    asyncio.run(scenario())
