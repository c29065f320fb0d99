"""Engines that take turns: who is started, held and let go, in which order, whatever comes up or does not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from casemate.device.children import ChildDied
from casemate.device.plan import Engine, ServedModel
from casemate.device.supervisor import RestartPolicy
from casemate.device.upkeep import Upkeep
from casemate.errors import OperationError, PolicyDeniedError, UntrustedDataError
from casemate.formats import ipc

NO_ROOM = ChildDied("no memory")
REFUSED = ChildDied("refused", transient=False, error=UntrustedDataError("changed", check="container-chunk", hint=""))


class Child:
    """An engine process that ends when it is killed or let go."""

    def __init__(self, said: list[str], name: str) -> None:
        self._said, self._name = said, name
        self.ended = asyncio.Event()

    def kill(self) -> None:
        self._said.append(f"kill {self._name}")
        self.ended.set()


class Leases:
    """What the fleet says of keys: *refusal* is raised when it is asked."""

    def __init__(self, said: list[str]) -> None:
        self._said = said
        self.refusal: Exception | None = None

    async def obtain(self, model: str, *, anew: bool = False) -> None:
        self._said.append(f"ask {model}{' anew' if anew else ''}")
        if self.refusal:
            raise self.refusal

    async def ready(self, model: str) -> None:
        self._said.append(f"mind {model}")

    @contextlib.asynccontextmanager
    async def obtained(self, model: str, *, anew: bool = False) -> AsyncIterator[int]:
        await self.obtain(model, anew=anew)
        yield 99


class World:
    """An agent that writes down what is asked of it; engines in *failing* do not come up, as often as listed."""

    def __init__(self, *, beside: bool = True, failing: dict[str, list[ChildDied]] | None = None) -> None:
        self.said: list[str] = []
        self.failing = failing or {}
        self.plan = SimpleNamespace(settings={"engine.deadline": 60}, policy=ipc.TakePolicy(), owner_public="")
        self.launchers = SimpleNamespace(beside=beside)
        self.engines: dict[str, Engine] = {}
        self.leases = Leases(self.said)
        self.upkeep = Upkeep(self)  # type: ignore[arg-type] - as much of an agent as it needs

    async def start_engine(self, engine: Engine) -> None:
        name = engine.model.container
        if self.failing.get(name):
            self.said.append(f"no {name}")
            raise self.failing[name].pop(0)
        self.said.append(f"up {name}")
        engine.child = Child(self.said, name)  # type: ignore[assignment]

    def adopt(self, engine: Engine) -> None:
        self.said.append(f"adopt {engine.model.container}")
        self.engines[engine.model.name] = engine
        engine.task = asyncio.ensure_future(self._keep(engine))

    async def _keep(self, engine: Engine) -> None:
        if not engine.child:
            await self.start_engine(engine)
        await engine.child.ended.wait()  # type: ignore[union-attr]
        engine.child = None

    def tell_gateway(self, message: ipc.Message, link: Any = None) -> None:
        assert isinstance(message, ipc.EngineHold)
        self.said.append("hold")
        old = self.engines[message.model].child
        asyncio.get_running_loop().call_later(0.01, old.ended.set)  # type: ignore[union-attr]

    async def serve(self, container: str, **more: Any) -> dict[str, Any]:
        return await self.upkeep.answer(ipc.Ask("serve", {"model": {"name": "m", "container": container, **more}}))

    async def ask_vault(self, request: Any, fds: Any, deadline: float) -> Any:
        self.said.append(f"vault keyed={request.keyed} {fds}")
        return ipc.ReleaseOpened(request.id, b"")


def scene(scenario: Any, **options: Any) -> list[str]:
    async def main() -> list[str]:
        world = World(**options)
        world.adopt(Engine(ServedModel("m", "", container="m.g1"), RestartPolicy()))
        await asyncio.sleep(0)
        world.said.clear()
        await asyncio.wait_for(scenario(world), 10)
        await asyncio.sleep(0)
        return world.said

    return asyncio.run(main())


def test_beside_the_new_engine_is_up_before_the_old_one_is_let_go() -> None:
    async def scenario(world: World) -> None:
        old = world.engines["m"]
        assert (await world.serve("m.g2"))["way"] == "beside"
        assert old.retired
        assert old.child

    assert scene(scenario) == ["up m.g2", "adopt m.g2"]


def test_a_refused_model_changes_nothing() -> None:
    async def scenario(world: World) -> None:
        old = world.engines["m"]
        with pytest.raises(UntrustedDataError):
            await world.serve("m.g2")
        assert world.engines["m"] is old
        assert not old.retired

    assert scene(scenario, failing={"m.g2": [REFUSED]}) == ["no m.g2"]


def test_without_room_for_two_the_queue_is_held_while_they_take_turns() -> None:
    async def scenario(world: World) -> None:
        assert (await world.serve("m.g2"))["way"] == "in turn"

    expected = ["no m.g2", "hold", "up m.g2", "adopt m.g2"]
    assert scene(scenario, failing={"m.g2": [NO_ROOM]}) == expected
    assert scene(scenario, beside=False) == expected[1:]


def test_in_turn_the_old_engine_comes_back_when_the_new_one_does_not_come_up() -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(OperationError):
            await world.serve("m.g2")
        await asyncio.sleep(0.05)
        assert world.engines["m"].model.container == "m.g1"
        assert world.engines["m"].child
        assert not world.engines["m"].retired

    failing = {"m.g2": [NO_ROOM, NO_ROOM]}
    assert scene(scenario, failing=failing) == ["no m.g2", "hold", "no m.g2", "adopt m.g1", "up m.g1"]


def test_the_container_that_serves_is_not_started_again() -> None:
    async def scenario(world: World) -> None:
        assert (await world.serve("m.g1"))["way"] == "nothing to do"

    assert scene(scenario) == []


def test_an_engine_that_is_down_is_simply_replaced() -> None:
    async def scenario(world: World) -> None:
        world.engines["m"].child = None
        await world.serve("m.g2")
        assert world.engines["m"].model.container == "m.g2"

    assert scene(scenario) == ["up m.g2", "adopt m.g2"]


def test_a_gated_model_is_served_under_a_lease_that_is_renewed() -> None:
    async def scenario(world: World) -> None:
        assert (await world.serve("m.g2", gate="m"))["way"] == "beside"
        assert world.engines["m"].model.gate == "m"

    assert scene(scenario) == ["ask m", "mind m", "up m.g2", "adopt m.g2"]


def test_without_a_lease_a_gated_model_changes_nothing() -> None:
    async def scenario(world: World) -> None:
        old, world.leases.refusal = world.engines["m"], PolicyDeniedError("no")
        with pytest.raises(PolicyDeniedError):
            await world.serve("m.g2", gate="m")
        assert world.engines["m"] is old
        assert not old.retired

    assert scene(scenario) == ["ask m"]


def test_what_a_device_goes_back_to_waits_for_its_lease_and_the_one_it_leaves_ends() -> None:
    async def scenario(world: World) -> None:
        old, world.leases.refusal = world.engines["m"], PolicyDeniedError("no")
        assert (await world.serve("m.g0", gate="m", waits=True))["way"] == "waits for its fleet"
        assert old.retired
        assert old.child is None

    assert scene(scenario)[:3] == ["ask m", "hold", "adopt m.g0"]


def test_a_key_comes_from_the_fleet_and_never_from_whoever_asks() -> None:
    """It is asked for anew when a release is opened; what came along as a key is not passed on."""

    async def scenario(world: World) -> None:
        for request in (
            ipc.OpenRelease(1, b"", b"", b"", gate="m"),
            ipc.Transcode(1, b"", b"", b"", "", "", "", gate="m", keyed=True),
            ipc.OpenRelease(1, b"", b"", b"", keyed=True),
        ):
            await world.upkeep.ask_vault(request, [7, 8])
        world.leases.refusal = PolicyDeniedError("no")
        with pytest.raises(PolicyDeniedError):
            await world.upkeep.ask_vault(ipc.OpenRelease(1, b"", b"", b"", gate="m"), [])

    expected = ["ask m anew", "vault keyed=True [99]", "ask m", "vault keyed=True [7, 99]", "vault keyed=False []"]
    assert scene(scenario) == [*expected, "ask m anew"]


@pytest.mark.parametrize("args", [{}, {"model": {"name": "m"}}, {"model": 3}])
def test_wrong_questions_are_refused(args: dict[str, Any]) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises((OperationError, KeyError)):
            await world.upkeep.answer(ipc.Ask("serve", args))

    assert scene(scenario) == []
