"""What the agent does to its processes when a fleet, a slow vault or a cancelled start comes between."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from casemate import config
from casemate.device import channel, duty
from casemate.device.agent import Agent
from casemate.device.children import ChildDied
from casemate.device.core import Core
from casemate.device.duty import Duty
from casemate.device.engines import Engines
from casemate.device.home import Home
from casemate.device.plan import DevicePlan, Engine, ServedModel
from casemate.device.processes import Processes
from casemate.device.supervisor import RestartPolicy
from casemate.errors import HostError
from casemate.formats import ipc


class Clock:
    def wall(self) -> float:
        return 1.8e9

    def monotonic(self) -> float:
        return 5.0


class Child:
    """A program that only notes that it was ended."""

    def __init__(self) -> None:
        self.pid, self.killed = 1, asyncio.Event()
        self._ended: Any = None

    def watch(self, ended: Any) -> None:
        self._ended = ended

    def kill(self) -> None:
        self.killed.set()
        self._ended("was killed")


class Launchers:
    """Starts programs that greet, and get ready when *ready* is set; what they are asked is in `heard`."""

    beside = True

    def __init__(self, *, unable: tuple[str, ...] = ()) -> None:
        self.unable = unable
        self.ready = asyncio.Event()
        self.children: dict[str, list[Child]] = {}
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.links: dict[str, channel.AsyncChannel] = {}
        self.lives: list[asyncio.Future[None]] = []

    def core(self, role: str) -> Any:
        async def launch(_inherited: Any) -> Any:
            if role in self.unable:
                raise HostError(f"no {role} here")
            ours, theirs = channel.pair()
            child = Child()
            self.children.setdefault(role, []).append(child)
            self.lives.append(asyncio.ensure_future(self._live(role, channel.AsyncChannel(theirs, ipc.AgentToChild))))
            return child, ours

        return launch

    async def _live(self, role: str, link: channel.AsyncChannel) -> None:
        self.links[role] = link
        with contextlib.suppress(channel.ChannelClosed):
            await link.send(ipc.Hello(role=role, pid=1))
            await link.recv()
            await self.ready.wait()
            await link.send(ipc.Ready(facts={}))
            while True:
                message = (await link.recv())[0]
                if not isinstance(message, ipc.Ping):
                    self.heard.put_nowait(message)
        link.close()


class World:
    """A device of processes that are none."""

    def __init__(self, **options: Any) -> None:
        self.launchers = Launchers(**options)
        self.reported: list[str] = []
        self.stuck = False
        settings = {"engine.context": 0, "engine.slots": 1}
        home = SimpleNamespace(path="/", id="h", fleet=None)
        plan = SimpleNamespace(
            home=home, settings=settings, unlock={}, models=(), report=self.reported.append, on_trial=False
        )
        self.processes = Processes(plan, Clock(), self.launchers, self)  # type: ignore[arg-type]
        self.core = Core(self.processes, dict, lambda: None)
        chip: Any = SimpleNamespace(drop_keys=self._nothing)
        self.duty = Duty(
            self.processes, self.core, chip, lambda: self.engines, retired=list, serve=self.serve, take=None
        )
        self.engines = Engines(self.processes, self.core, self.duty.leases, self._nothing)

    async def _nothing(self, *_: Any, **__: Any) -> None:
        """Do what a device without a TPM does, or one whose TPM does not answer."""
        if self.stuck:
            await asyncio.Event().wait()

    async def start_vault(self) -> None:
        await self.processes.start("vault", {}, {})

    async def serve(self) -> None:
        """As the agent does, without a gateway."""
        self.engines.held = False
        await self.start_vault()
        self.processes.keep("vault", self.start_vault)
        self.engines.begin()

    async def heard(self, child: Any, message: Any) -> None:
        del child
        await self.core.vault_said(message)

    async def lost(self, child: Any, died: ChildDied) -> None:
        del child
        await self.core.vault_said(died)


def scene(scenario: Any, **options: Any) -> None:
    async def main() -> None:
        world = World(**options)
        try:
            async with asyncio.timeout(60):
                await scenario(world)
        finally:
            world.processes.stopping.set()
            await world.processes.cancel_tasks()
            for child in world.processes.children.values():
                child.link.close()
            await asyncio.gather(*world.launchers.lives)

    asyncio.run(main())


async def happens(what: Any) -> None:
    while not what():  # noqa: ASYNC110 - of things that tell nobody
        await asyncio.sleep(0.01)


def test_a_quarantine_that_comes_while_the_vault_starts_ends_that_start() -> None:
    async def scenario(world: World) -> None:
        starting = asyncio.ensure_future(world.duty.begin())
        await happens(lambda: "vault" in world.launchers.children)
        await world.duty.hold()
        await starting
        world.launchers.ready.set()
        assert world.engines.held
        assert world.processes.children == {}
        assert world.launchers.children["vault"][0].killed.is_set(), "a process with the key was left behind"
        await world.duty.resume()
        assert not world.engines.held
        assert "vault" in world.processes.children

    scene(scenario)


def test_a_tpm_that_is_stuck_does_not_hold_up_a_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duty, "_DROP_WITHIN", 0.01)

    async def scenario(world: World) -> None:
        world.launchers.ready.set()
        await world.duty.begin()
        world.stuck = True
        await world.duty.hold()
        assert world.launchers.children["vault"][0].killed.is_set()

    scene(scenario)


def test_control_nothing_comes_between_and_the_device_serves() -> None:
    async def scenario(world: World) -> None:
        world.launchers.ready.set()
        await world.duty.begin()
        assert not world.engines.held
        assert not world.launchers.children["vault"][0].killed.is_set()

    scene(scenario)


def test_a_late_answer_of_the_vault_is_not_the_answer_to_the_next_question() -> None:
    async def scenario(world: World) -> None:
        world.launchers.ready.set()
        await world.duty.begin()
        with pytest.raises(ChildDied, match="did not answer"):
            await world.core.ask_vault(ipc.ListContainers(1), (), 0.01)
        second = asyncio.ensure_future(world.core.ask_vault(ipc.ListContainers(2), (), 60))
        for _ in range(2):
            await world.launchers.heard.get()
        for number in (1, 2):
            await world.launchers.links["vault"].send(ipc.Containers(number, ()))
        assert (await second).id == 2

    scene(scenario)


def test_a_question_to_a_vault_that_is_gone_takes_no_answer_of_the_next_one() -> None:
    async def scenario(world: World) -> None:
        world.launchers.ready.set()
        await world.duty.begin()
        first = world.processes.children["vault"]
        world.launchers.children["vault"][0].kill()
        world.launchers.links["vault"].close()
        with pytest.raises(ChildDied):  # its end may be known already, or become known by the question
            await world.core.ask_vault(ipc.ListContainers(1), (), 60)
        await happens(lambda: first.link.socket.fileno() < 0)
        with pytest.raises(ChildDied):  # it is known to be gone, and the next is not there yet
            await world.core.ask_vault(ipc.ListContainers(2), (), 60)
        await happens(lambda: world.processes.children["vault"] is not first)
        asked = asyncio.ensure_future(world.core.ask_vault(ipc.ListContainers(3), (), 60))
        await world.launchers.heard.get()
        await world.launchers.links["vault"].send(ipc.Containers(3, ()))
        assert (await asked).id == 3

    scene(scenario)


def test_a_link_that_cannot_be_started_is_tried_again_and_takes_nothing_down() -> None:
    async def scenario(world: World) -> None:
        world.duty.respondent = SimpleNamespace(link_settings=dict)  # type: ignore[assignment]
        keeping = world.processes.spawn(world.duty._keep_link())
        await happens(lambda: world.reported)
        assert not keeping.done()
        assert world.processes.fatal is None

    scene(scenario, unable=("link",))


def test_an_engine_is_not_started_while_there_is_no_gateway_to_serve() -> None:
    """It would end at once, and six such ends in ten minutes leave it down for good."""

    async def scenario(world: World) -> None:
        started: list[str] = []

        async def start(engine: Engine) -> None:
            started.append(engine.model.name)
            raise ChildDied("no such program", transient=False)

        world.engines.start = start  # type: ignore[method-assign]
        gateway = world.processes.policies["gateway"]
        gateway.died(5.0, "killed")
        world.engines.adopt(Engine(ServedModel("m", ""), RestartPolicy()))
        for _ in range(100):
            await asyncio.sleep(0)
        assert started == []
        gateway.started(5.0)
        await happens(lambda: started)

    scene(scenario)


def test_stock_is_taken_anew_when_another_generation_serves_and_only_then() -> None:
    async def scenario(world: World) -> None:
        taken: list[Any] = []

        def stands(found: Any) -> None:
            follower.running = found.running

        follower = SimpleNamespace(running="a", stands=stands)
        take_stock = lambda models, policies: taken.append((list(models), policies))  # noqa: E731
        world.duty.respondent = SimpleNamespace(follower=follower, take_stock=take_stock)  # type: ignore[assignment]
        engine = Engine(ServedModel("m", "", container="m.g2"), RestartPolicy(), digest="sha256:" + "0" * 64)
        world.engines.by_name["m"] = engine
        world.duty.stands({"running": "a"}, {})
        assert taken == []
        world.duty.stands({"running": "b"}, {"kitchen": "schema = 1"})
        assert taken == [([(engine.model, engine.digest)], {"kitchen": "schema = 1"})]
        world.duty.respondent = None

    scene(scenario)


@pytest.mark.parametrize(("role", "taken"), [("gateway", False), ("engine", False), ("link", False), ("vault", True)])
def test_nobody_but_the_vault_answers_for_the_vault(tmp_path: Path, role: str, taken: bool) -> None:
    unused: Any = None
    plan = DevicePlan(
        home=Home(tmp_path),
        settings=config.load({}, {}),
        models=(),
        listen=unused,
        metrics=unused,
        owner_public="",
        unlock={},
        tls={},
        notes={},
        announce=unused,
    )

    async def main() -> bool:
        agent = Agent(plan, Clock())
        answer = asyncio.get_running_loop().create_future()
        agent._core._vault_asked.append(answer)
        await agent.heard(SimpleNamespace(role=role), ipc.Loaded("m", "sha256:" + "0" * 64, 1, 0.1, 1))  # type: ignore[arg-type]
        return answer.done()

    assert asyncio.run(main()) is taken
