"""Links: messages and descriptors arrive together, a lying peer is cut off, nothing leaks."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from casemate.device import channel
from casemate.device.channel import AsyncChannel, Channel, ChannelClosed
from casemate.errors import UntrustedDataError
from casemate.formats import ipc


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def blocking():
    a, b = channel.pair()
    left, right = Channel(a, ipc.AgentToChild), Channel(b, ipc.AgentToChild)
    yield left, right
    left.close()
    right.close()


def test_a_descriptor_arrives_with_its_frame(blocking):
    left, right = blocking
    with open("/dev/zero", "rb") as zero:
        left.send(ipc.Ping(n=1))
        left.send(ipc.Load(model="m", path="p"), [zero.fileno()])
        left.send(ipc.Ping(n=2))
    assert right.recv(1) == (ipc.Ping(n=1), [])
    message, (fd,) = right.recv(1)
    assert message == ipc.Load(model="m", path="p")
    assert os.read(fd, 4) == bytes(4)
    os.close(fd)
    assert right.recv(1) == (ipc.Ping(n=2), [])


def test_descriptors_nobody_asked_for_close_the_link_and_do_not_leak(blocking):
    left, right = blocking
    before = open_fds()
    socket.send_fds(left.socket, [ipc.encode(ipc.Ping(n=1))], [0, 1])
    with pytest.raises(UntrustedDataError) as caught:
        right.recv(1)
    assert caught.value.check == "ipc-descriptors"
    assert open_fds() == before - 1  # the link itself


def test_a_frame_that_needs_a_descriptor_without_one_is_refused(blocking):
    left, right = blocking
    left.socket.sendall(ipc.encode(ipc.Load(model="m", path="p")))
    with pytest.raises(UntrustedDataError):
        right.recv(1)


def test_end_of_file_and_silence_are_told_apart(blocking):
    left, right = blocking
    with pytest.raises(TimeoutError):
        right.recv(0.01)
    left.close()
    with pytest.raises(ChannelClosed):
        right.recv(1)


def test_a_large_frame_crosses_an_async_link_with_back_pressure():
    async def scenario():
        a, b = channel.pair()
        left, right = AsyncChannel(a, ipc.FromEngine), AsyncChannel(b, ipc.FromEngine)
        text = "x" * 5_000_000
        sending = asyncio.ensure_future(left.send(ipc.Chunk(id=1, text=text)))
        message, _ = await asyncio.wait_for(right.recv(), 10)
        await sending
        assert message.text == text
        left.close()
        with pytest.raises(ChannelClosed):
            await right.recv()
        right.close()

    asyncio.run(scenario())


def test_closing_an_async_link_wakes_its_reader_and_iteration_ends():
    async def scenario():
        a, b = channel.pair()
        left, right = AsyncChannel(a, ipc.FromEngine), AsyncChannel(b, ipc.FromEngine)
        left.post(ipc.Chunk(id=1, text="last words"))
        await asyncio.sleep(0)
        left.close()
        assert [message.text async for message, _ in right] == ["last words"]
        with pytest.raises(ChannelClosed):
            right.post(ipc.Chunk(id=2, text="too late"))
        right.close()

    asyncio.run(scenario())


def test_posted_descriptors_are_duplicated_and_closed_after_the_send():
    async def scenario():
        before = open_fds()
        a, b = channel.pair()
        left, right = AsyncChannel(a, ipc.AgentToChild), Channel(b, ipc.AgentToChild)
        with open("/dev/zero", "rb") as zero:
            left.post(ipc.Load(model="m", path="p"), [zero.fileno()])
        _, (fd,) = right.recv(1)
        os.close(fd)
        left.close()
        right.close()
        assert open_fds() == before

    asyncio.run(scenario())
