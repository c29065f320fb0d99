"""A taken-over update process asks the device for more than updates: weights, the end of the device, forged records.

It speaks over the one link it has. The control is the same question at the agent's control socket, or over the vault's
own link, which it does not get.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from casemate.device.admin import AdminServer, ask_over
from casemate.device.agent import Agent
from casemate.device.channel import Channel, ChannelClosed, pair
from casemate.device.upkeep import Upkeep
from casemate.errors import CasemateError
from casemate.formats import event, ipc

FORGED = event.device_stopped(reason="signal", now=1.0)
OWN = event.update_good(generation=3, content="c" * 64, now=1.0)


class Device:
    """As much of an agent as can be asked."""

    def __init__(self) -> None:
        self.recorded: list[Any] = []
        self.stopped = asyncio.Event()
        self.plan = SimpleNamespace(policy=ipc.TakePolicy(), owner_public="", settings={})
        self.engines: dict[str, Any] = {}

    async def append(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        self.recorded += events
        return {"index": 1}

    def status(self) -> dict[str, Any]:
        return {"ready": True}

    async def ask_vault(self, request: Any, fds: Sequence[int], deadline: float) -> Any:
        del fds, deadline
        return ipc.Containers(request.id, ("saffron",))


def at_the_door(path: Any, question: Any) -> Any:
    """Ask over the update process's link; returns what *question* (given a channel) does, and the device."""

    async def scenario() -> Any:
        device = Device()
        upkeep = Upkeep(device)  # type: ignore[arg-type]
        server = AdminServer(path / "update.sock", upkeep.answer, upkeep.ask_vault, union=ipc.UpdateToAgent)
        ours, theirs = pair()
        server.admit(ours)
        channel = Channel(theirs, ipc.FromAgent)
        try:
            return await asyncio.to_thread(question, channel), device
        finally:
            channel.close()
            await asyncio.sleep(0)

    return asyncio.run(scenario())


def tell(verb: str, **args: Any) -> Any:
    def question(channel: Channel) -> str:
        try:
            ask_over(channel, verb, args, 10)
        except CasemateError as error:
            return error.message
        return "done"

    return question


@pytest.mark.parametrize("verb", ["stop", "restart", "quarantine", "Load"])
def test_it_cannot_end_the_device(tmp_path: Any, verb: str) -> None:
    said, device = at_the_door(tmp_path, tell(verb))
    assert said == f"the agent has no verb {verb!r}"
    assert not device.stopped.is_set()


def test_it_records_nothing_but_what_is_about_updates(tmp_path: Any) -> None:
    said, device = at_the_door(tmp_path, tell("record", events=[OWN, FORGED]))
    assert "nothing else" in said
    assert device.recorded == []


def test_control_its_own_events_are_recorded(tmp_path: Any) -> None:
    said, device = at_the_door(tmp_path, tell("record", events=[OWN]))
    assert (said, device.recorded) == ("done", [OWN])


def test_it_cannot_ask_the_vault_for_weights(tmp_path: Any) -> None:
    """A `Load` does not decode at this door, so nothing is passed on and the link is cut."""
    supply, far = pair()

    def question(channel: Channel) -> str:
        with supply, far:
            channel.send(ipc.Load(model="saffron", path=""), [far.fileno()])
            try:
                channel.recv(10)
            except ChannelClosed:
                return "cut off"
        return "answered"

    assert at_the_door(tmp_path, question)[0] == "cut off"


def test_it_cannot_have_a_key_wrapped(tmp_path: Any) -> None:
    """That is for a command, at the control socket; a workshop's link is this door's."""

    def question(channel: Channel) -> str:
        reader, writer = os.pipe()
        channel.send(ipc.WrapKey(1, "saffron", b"", "L0"), [reader])
        try:
            channel.recv(10)
        except ChannelClosed:
            return "cut off"
        finally:
            os.close(reader)
            os.close(writer)
        return "answered"

    assert at_the_door(tmp_path, question)[0] == "cut off"
    reader = ipc.FrameReader(ipc.CommandToAgent)
    assert reader.feed(ipc.encode(ipc.WrapKey(1, "saffron", b"", "L0")))


def test_control_a_release_verb_is_passed_on(tmp_path: Any) -> None:
    def question(channel: Channel) -> Any:
        channel.send(ipc.ListContainers(7))
        return channel.recv(10)[0]

    assert at_the_door(tmp_path, question)[0] == ipc.Containers(7, ("saffron",))


def test_control_over_the_vaults_own_link_a_load_is_understood() -> None:
    """The link that the update process is never given."""
    ours, theirs = pair()
    with ours, theirs:
        reader, writer = os.pipe()
        Channel(ours, ipc.ChildToAgent).send(ipc.Load(model="saffron", path=""), [writer])
        message, fds = Channel(theirs, ipc.AgentToChild).recv(10)
        assert isinstance(message, ipc.Load)
        for fd in (reader, writer, *fds):
            os.close(fd)


def test_control_the_control_socket_stops_the_device() -> None:
    async def scenario() -> bool:
        agent = Agent.__new__(Agent)
        agent._processes = SimpleNamespace(stopping=asyncio.Event())  # type: ignore[assignment]
        await agent.answer(ipc.Ask("stop"))
        return agent._processes.stopping.is_set()

    assert asyncio.run(scenario())
