"""One engine per model: brought up with what the vault sends it, restarted when it dies, ended when a fleet says so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from casemate.device.children import ChildDied, ChildProcess, link_pair, rebuild, start_child, wait_ready
from casemate.device.core import QUARANTINED, Core
from casemate.device.leases import LeaseOver, Leases
from casemate.device.plan import Engine
from casemate.device.processes import Processes
from casemate.device.supervisor import RestartPolicy, State
from casemate.errors import OperationError
from casemate.formats import event, ipc

_LOOK: Final = 2.0
_AGAIN: Final = 1.0
_GATEWAY_LOOK: Final = 0.1


class Engines:
    """The engines of one device, by the name their model is served under."""

    def __init__(
        self, processes: Processes, core: Core, leases: Leases, measure: Callable[[str, str], Awaitable[None]]
    ) -> None:
        """Serve the models of the plan; *measure* (name, digest) returns before the gateway may reach a model.

        A gated model runs while *leases* has one for it.
        """
        self._processes = processes
        self._leases = leases
        self._core = core
        self._measure = measure
        self.held = False
        """A fleet ended them all: none is started until it says so."""
        self.by_name = {model.name: Engine(model, RestartPolicy()) for model in processes.plan.models}

    # -- life

    def begin(self) -> None:
        """Start every engine, whatever happened to it before."""
        self.held = False
        self._leases.ask_again()
        for engine in list(self.by_name.values()):
            engine.policy = RestartPolicy()
            self.adopt(engine)

    def adopt(self, engine: Engine) -> None:
        """Serve *engine*'s model with it from now on; it is started unless it runs."""
        self.by_name[engine.model.name] = engine
        engine.task = self._processes.spawn(self._keep(engine))

    async def _keep(self, engine: Engine) -> None:
        """Start one engine (unless it runs), restart it when it dies, leave it down when its policy says so."""
        processes = self._processes
        clock, record = processes.clock, processes.record
        while True:
            try:
                if not engine.child:
                    await self._wait_for_lease(engine)
                    await self._wait_for_gateway()
                    await self.start(engine)
                assert engine.child
                engine.policy.started(clock.monotonic())
                processes.changed.set()
                died = await self._attend(engine, engine.child)
            except ChildDied as failed:
                died = failed
            engine.child = None
            if engine.retired:
                return
            if isinstance(died, LeaseOver):
                engine.policy.stopped(died.reason)
                await asyncio.sleep(_AGAIN)
                continue
            delay = engine.policy.died(clock.monotonic(), died.reason, transient=died.transient)
            self.tell_down(engine, delay)
            name, now = engine.model.name, clock.wall()
            record(event.engine_crashed(model=name, cause=died.reason, now=now))
            if delay is None:
                record(event.engine_needs_triage(model=name, attempts=engine.policy.failures, now=now))
                if len(self.by_name) == 1 and died.error and not processes.plan.on_trial:
                    raise died.error  # the only model was refused: there is nothing to serve
                processes.report_death(f"the engine of {name}", died, "stays down: see `casemate status`")
                return
            processes.report_death(f"the engine of {name}", died, "is started again")
            await asyncio.sleep(delay)
            record(event.engine_restarted(model=name, attempt=engine.policy.failures, now=clock.wall()))

    async def _wait_for_lease(self, engine: Engine) -> None:
        """Return when *engine* may run; until then its model is stopped, and says why."""
        gate = engine.model.gate
        if not gate:
            return
        waiting = asyncio.ensure_future(self._leases.ready(gate))
        try:
            while not (await asyncio.wait([waiting], timeout=_LOOK))[0]:
                if engine.policy.state is not State.STOPPED:
                    self._processes.plan.report(f"{engine.model.name} waits for its fleet: {self._leases.told(gate)}")
                engine.policy.stopped(self._leases.told(gate))
                self.tell_down(engine, None)
        finally:
            waiting.cancel()

    async def _wait_for_gateway(self) -> None:
        """Return when the gateway runs: an engine that comes up without it ends again, and is not to blame."""
        gateway = self._processes.policies["gateway"]
        while gateway.state is not State.RUNNING:  # noqa: ASYNC110 - many wait for it, and it is over in a second
            await asyncio.sleep(_GATEWAY_LOOK)

    async def _attend(self, engine: Engine, child: ChildProcess) -> ChildDied:
        """Attend *child* until it dies or its lease is over, which ends it."""
        gate = engine.model.gate
        if not gate:
            return await self._processes.attend(child)
        ending = asyncio.ensure_future(self._end_with_lease(gate, child))
        try:
            died = await self._processes.attend(child)
        finally:
            ending.cancel()
        if self._leases.runs(gate):
            return died
        why = self._leases.told(gate)
        engine.policy.stopped(why)
        self.tell_down(engine, None)
        self._processes.record(event.lease_ended(model=engine.model.name, reason=why, now=self._processes.clock.wall()))
        self._processes.plan.report(f"{engine.model.name} stopped: {why}")
        return LeaseOver(why)

    async def _end_with_lease(self, gate: str, child: ChildProcess) -> None:
        await self._leases.over(gate)
        child.kill()

    async def start(self, engine: Engine) -> None:
        """Run one engine up to `EngineUp`: it loads what the vault sends it, then the gateway gets its link.

        The vault decrypts while the process starts: the weights wait in their link.

        Raises:
            ChildDied: it did not come up; nothing of it is left.

        """
        processes, settings = self._processes, self._processes.plan.settings
        began = processes.clock.monotonic()
        gateway_end, engine_end = link_pair()
        vault_end, supply_end = link_pair()
        with gateway_end, vault_end:
            loading = asyncio.ensure_future(self._load(engine, vault_end))
            try:
                child = await start_child(
                    "engine",
                    processes.launchers.engine(engine.model.name, replay=bool(engine.model.replay)),
                    home="/",
                    settings=self._settings(engine),
                    fds={},
                    inherited=[engine_end.fileno(), supply_end.fileno()],
                )
            except asyncio.CancelledError:
                loading.cancel()  # the device stops: nobody hears what the vault answers
                raise
            except BaseException:
                supply_end.close()
                await asyncio.wait([loading])  # also when the process did not start: the vault's turn must end
                raise
            finally:
                engine_end.close()
                supply_end.close()
            try:
                await asyncio.wait([loading])
            except asyncio.CancelledError:  # nobody else knows of the process yet
                loading.cancel()
                child.kill()
                raise
            engine.child = child
            try:
                loading.result()
                vault_end.close()
                if engine.digest:
                    await self._measure(engine.model.name, engine.digest)
                await wait_ready(child, settings["engine.load_deadline"])
            except ChildDied:
                engine.child = None
                child.kill()
                raise
            engine.seconds = processes.clock.monotonic() - began
            self._record_ready(engine, child)
            up = ipc.EngineUp(
                model=engine.model.name,
                digest=engine.digest,
                slots=int(child.facts.get("slots", settings["engine.slots"])),
                context=int(child.facts.get("context", 0)),
                created=int(processes.clock.wall()),
            )
            self._core.tell_gateway(up, gateway_end)

    def _record_ready(self, engine: Engine, child: ChildProcess) -> None:
        name, now = engine.model.name, self._processes.clock.wall()
        layers = ("namespaces", f"landlock-{child.facts.get('landlock_abi', 0)}", "seccomp")
        self._processes.record(
            event.sandbox_started(model=name, pid=child.pid, layers=layers, now=now),
            event.engine_ready(model=name, digest=engine.digest, seconds=engine.seconds, now=now),
        )

    def _settings(self, engine: Engine) -> dict[str, Any]:
        wanted = self._processes.plan.settings
        settings: dict[str, Any] = {
            "slots": wanted["engine.slots"],
            "waiting": wanted["engine.queue"],
            "threads": wanted["engine.threads"],
            "load_seconds": float(wanted["engine.load_deadline"]),
        }
        if wanted["engine.context"]:
            settings["context"] = wanted["engine.context"]
        if engine.model.replay:
            settings["chunks"] = list(engine.model.replay)
        return settings

    async def _load(self, engine: Engine, vault_end: socket.socket) -> None:
        """Have the vault send the decrypted model down *vault_end*, one load at a time.

        Raises:
            ChildDied: refused (for good: tampered, no memory) or the vault is gone (worth another try).
            LeaseOver: it is gated, and the TPM does not give its key.

        """
        if engine.model.replay:
            return
        model, gate = engine.model, engine.model.gate
        request = ipc.Load(model=model.container or model.name, path=model.path, leased=bool(gate))
        deadline = self._processes.plan.settings["engine.load_deadline"]
        async with contextlib.AsyncExitStack() as held:
            keys = [await held.enter_async_context(self._leases.key(gate))] if gate else []
            reply = await self._core.ask_vault(request, [vault_end.fileno(), *keys], deadline)
        if isinstance(reply, ipc.LoadFailed):
            passing = reply.code == OperationError.code  # no memory, the engine went away: may be better next time
            raise ChildDied(f"model refused: {reply.message}", transient=passing, error=rebuild(reply))
        engine.digest, engine.bytes = reply.digest, reply.bytes

    # -- what others bring about

    def gateway_started(self) -> None:
        """Bring a restarted gateway and the engines together: an engine serves one gateway, so each gets a new link."""
        for engine in self.by_name.values():
            if engine.child:
                engine.child.kill()
            elif engine.policy.state is State.NEEDS_TRIAGE or self.held:
                self.tell_down(engine, None)

    def stuck(self, model: str) -> None:
        """End the engine of *model*, which ignored a cancel."""
        engine = self.by_name.get(model)
        if engine and engine.child:
            engine.child.kill()

    def tell_down(self, engine: Engine, delay: float | None) -> None:
        """Tell the gateway that *engine* is down, for *delay* seconds or (None) until somebody looks."""
        again = None if delay is None else max(1, round(delay))
        reason = QUARANTINED if self.held else engine.policy.state.value
        self._core.tell_gateway(ipc.EngineDown(model=engine.model.name, reason=reason, retry_after=again))

    # -- what is shown

    @property
    def ready(self) -> bool:
        """Whether every model answers."""
        return not self.held and all(engine.policy.state is State.RUNNING for engine in self.by_name.values())

    def status(self) -> list[dict[str, Any]]:
        """Return what `casemate status` shows of each model."""
        return [self._status(engine) for engine in self.by_name.values()]

    def _state(self, engine: Engine) -> str:
        if self.held:
            return QUARANTINED
        return "ready" if engine.policy.state is State.RUNNING else engine.policy.state.value

    def _status(self, engine: Engine) -> dict[str, Any]:
        return {
            "name": engine.model.name,
            **({"container": engine.model.container} if engine.model.container else {}),
            "digest": engine.digest,
            "bytes": engine.bytes,
            "state": self._state(engine),
            "reason": engine.policy.reason,
            **({"lease": self._leases.status(engine.model.gate)} if engine.model.gate else {}),
            "failures": engine.policy.failures,
            "pid": engine.child.pid if engine.child else None,
            "ready_after": round(engine.seconds, 3),
            "memory_mib": round(engine.child.memory / 1024, 1) if engine.child else 0,
            "engine": dict(engine.child.facts) if engine.child else {},
        }
