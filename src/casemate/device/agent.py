"""The supervisor: starts every process, wires their links, restarts what dies, answers `casemate status`.

It holds no key, no prompt and no byte of a model: descriptors of decrypted weights go from the vault to the engine
over a link the agent only made. Losing the agent stops the device (every child dies with it); losing a child is
repaired here, by the table in `device.supervisor`.

    start     journal -> attester -> link -> vault + gateway -> one engine per model (until then the gateway says 503)
    stop      gateway (drains) -> engines -> vault -> journal, within five seconds

A member of a fleet whose orders say so starts journal and link only, and serves when it is released. The parts:
`processes` (what lives), `core` (journal, vault, gateway), `engines`, `chip` (the TPM), `duty` (a fleet's orders).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any, Final

from casemate.clock import Clock, SystemClock
from casemate.device.admin import CONTROL_SOCKET, LINKED_UPDATE_SOCKET, UPDATE_SOCKET, AdminServer
from casemate.device.children import ChildDied, ChildProcess, link_pair, start_child
from casemate.device.chip import Chip
from casemate.device.core import Core, host_port
from casemate.device.duty import STOP_GRACE, Duty, is_ready
from casemate.device.engines import Engines
from casemate.device.launch import Launchers, OwnLaunchers
from casemate.device.leases import Leases
from casemate.device.plan import DevicePlan, Engine
from casemate.device.processes import Processes
from casemate.device.upkeep import Upkeep
from casemate.errors import HostError, OperationError
from casemate.formats import event, ipc

STOP_DRAIN: Final = 1.5
_SAYS: Final[dict[str, Any]] = {
    "vault": ipc.Loaded | ipc.LoadFailed | ipc.FromVault,
    "journal": ipc.LogProven,
    "attester": ipc.FromAttester,
    "link": ipc.FromLinkProcess,
    "gateway": ipc.Rehearsed | ipc.EngineStuck | ipc.Used,
}
"""What the agent takes from a process of a role; an engine says nothing to it but that it lives."""


class Agent:
    """One running device."""

    def __init__(self, plan: DevicePlan, clock: Clock | None = None, launchers: Launchers | None = None) -> None:
        """Run what *plan* says, in processes from *launchers* (its own children unless given); `run` starts it."""
        self.plan = plan
        self.launchers = launchers or OwnLaunchers()
        self.clock = clock or SystemClock()
        self._processes = Processes(plan, self.clock, self.launchers, self)
        self._core = Core(self._processes, lambda: self.engines, self._gateway_started)
        self._chip = Chip(self._processes)
        self._duty = Duty(
            self._processes,
            self._core,
            self._chip,
            lambda: self._engines,
            retired=lambda: self._upkeep.retired,
            serve=self._begin_serving,
            take=self._follow if plan.update_uid is None else None,
        )
        self._engines = Engines(self._processes, self._core, self._duty.leases, self._chip.measure_model)
        self._upkeep = Upkeep(self)
        self._updates = self._update_server()
        self._updating = asyncio.Lock()
        self._started = self.clock.wall()

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or a fault that no restart repairs.

        Raises:
            CasemateError: the device cannot serve (first start failed for good, or the core needs triage).

        """
        processes = self._processes
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, processes.stopping.set)
        admin = AdminServer(self.plan.home.run / CONTROL_SOCKET, self.answer, self._duty.wrap_key)
        try:
            await self._core.start_journal()
            processes.keep("journal", self._core.start_journal)
            await admin.start()
            await self._updates.start()
            await self._chip.begin()
            await self._duty.join(self.plan.member)
            await self._duty.begin()
            if not self._duty.may_serve:
                self.plan.report(f"the fleet holds this device: {self._duty.state}")
            processes.spawn(self._announce_when_ready())
            if self.plan.unsettled:
                processes.spawn(self._update(follow=False))
            await processes.stopping.wait()
        except ChildDied as died:
            raise died.error or OperationError(died.reason, hint="run `casemate doctor`") from died
        finally:
            with contextlib.suppress(OperationError):
                await self._duty.finish()
            await self._stop()
            admin.close()
            self._updates.close()
        if processes.fatal:
            raise processes.fatal

    async def _begin_serving(self) -> None:
        """Start what is not running yet of vault, gateway and engines."""
        self._engines.held = False
        await self._core.serve()
        self._engines.begin()
        started = event.device_started(
            version=self.plan.notes["version"], assurance=self.assurance["level"], now=self.clock.wall()
        )
        self._processes.record(started)

    async def _stop(self) -> None:
        processes = self._processes
        processes.stopping.set()
        reason = "needs triage" if processes.fatal else "signal"
        processes.record(event.device_stopped(reason=reason, now=self.clock.wall()))
        await processes.cancel_tasks()
        gateway = processes.children.pop("gateway", None)
        if gateway:
            await gateway.stop(STOP_DRAIN)
        rest = [engine.child for engine in (*self.engines.values(), *self._upkeep.retired) if engine.child]
        rest += [child for role, child in processes.children.items() if role != "journal"]
        await asyncio.gather(*(child.stop(STOP_GRACE) for child in rest))
        journal = processes.children.pop("journal", None)
        if journal:
            await journal.stop(STOP_DRAIN)

    async def _announce_when_ready(self) -> None:
        changed = self._processes.changed
        while not self.ready:
            await changed.wait()
            changed.clear()
        self.plan.announce(self._core.endpoint)

    def _update_server(self) -> AdminServer:
        """Return where the update process asks: for less than the control socket gives, and for the vault."""
        guest = self.plan.update_uid
        name = UPDATE_SOCKET if guest is None else LINKED_UPDATE_SOCKET
        path = self.plan.home.run / name
        return AdminServer(path, self._upkeep.answer, self._upkeep.ask_vault, union=ipc.UpdateToAgent, guest=guest)

    async def _update(self, *, follow: bool) -> None:
        """Run the update process once: it judges a trial, or (*follow*) takes what the fleet's director says.

        One that fails says why in the journal and on its standard error; the next start tries again.
        """
        async with self._updating:
            await self._run_update(follow=follow)

    async def _follow(self) -> None:
        """Take what the fleet's director says."""
        await self._update(follow=True)

    async def _run_update(self, *, follow: bool) -> None:
        ours, theirs = link_pair()
        self._updates.admit(ours)
        settings = {"settings": dict(self.plan.settings.values), "owner": self.plan.owner_public, "follow": follow}
        launch = self.launchers.core("update")
        with contextlib.suppress(ChildDied, HostError), theirs:
            child = await start_child(
                "update", launch, home=str(self.plan.home.path), settings=settings, fds={"agent": theirs.fileno()}
            )
            await child.exited

    # -- what processes say -----------------------------------------------------------------------------------------

    async def heard(self, child: ChildProcess, message: Any) -> None:
        """Take what *child* says, if it is what a process of its role may say.

        The gateway reads what strangers send: it must not answer for the vault.
        """
        if not isinstance(message, _SAYS.get(child.role, ())):
            return
        if child.role == "vault":
            await self._core.vault_said(message)
        elif child.role == "journal":
            self._core.log_proven(message)
        elif child.role == "attester":
            self._chip.heard(message)
        elif child.role == "link":
            self._duty.heard_of_fleet(message)
        elif isinstance(message, ipc.Rehearsed):
            self._upkeep.rehearsed(message)
        elif isinstance(message, ipc.EngineStuck):
            self._engines.stuck(message.model)
        else:
            self._duty.heard_of_use(message)

    async def lost(self, child: ChildProcess, died: ChildDied) -> None:
        """Tell who waits for the vault that it will not answer."""
        if child.role == "vault":
            await self._core.vault_said(died)

    def _gateway_started(self) -> None:
        self._upkeep.gateway_started()
        self._engines.gateway_started()

    # -- what an update asks (`device.upkeep`) ----------------------------------------------------------------------

    @property
    def engines(self) -> dict[str, Engine]:
        """The engines by the names of their models."""
        return self._engines.by_name

    async def start_engine(self, engine: Engine) -> None:
        """Bring *engine* up and turn the gateway to it.

        Raises:
            ChildDied: it did not come up; nothing of it is left.

        """
        await self._engines.start(engine)

    def adopt(self, engine: Engine) -> None:
        """Keep *engine* from now on."""
        self._engines.adopt(engine)

    def tell_gateway(self, message: ipc.Message, link: socket.socket | None = None) -> None:
        """Post *message* to the gateway."""
        self._core.tell_gateway(message, link)

    async def ask_vault(self, request: ipc.Load | ipc.ToVault, fds: Sequence[int], deadline: float) -> Any:
        """Return the vault's answer.

        Raises:
            ChildDied: the vault is gone or did not answer: worth another try.

        """
        return await self._core.ask_vault(request, fds, deadline)

    @property
    def leases(self) -> Leases:
        """The leases on the keys of gated models."""
        return self._duty.leases

    def direction(self) -> dict[str, Any]:
        """Return what the fleet's director says."""
        return self._duty.direction()

    def stands(self, facts: dict[str, Any]) -> None:
        """Hear where an update stands."""
        self._duty.stands(facts, self._upkeep.policy.apps)

    async def measure_taken(self, policy: ipc.TakePolicy) -> None:
        """Measure what an update says about apps and the guard, before it is used.

        Raises:
            ChildDied: it could not be measured.

        """
        await self._chip.measure_taken(policy)

    async def measure_generation(self, content: str) -> None:
        """Measure which generation is served from now on.

        Raises:
            ChildDied: it could not be measured.

        """
        await self._chip.measure_generation(content)

    async def raise_floor(self, number: int) -> None:
        """Have the TPM's counter of updates raised to *number*.

        Raises:
            CasemateError: there is no TPM, or it did not.

        """
        await self._chip.raise_floor(number)

    # -- what the command line asks -----------------------------------------------------------------------------------

    async def answer(self, ask: ipc.Ask) -> dict[str, Any]:
        """Do what the command line asks.

        Raises:
            OperationError: unknown verb or wrong arguments.

        """
        if ask.verb == "status":
            return self.status()
        if ask.verb == "record":
            return await self.append(ask.args["events"])
        if ask.verb == "fleet":  # somebody enrolled this device while it runs
            from casemate.device.fleet.membership import read_member  # noqa: PLC0415 - needs cryptography

            await self._duty.join(read_member(self.plan.home))
            return {}
        if ask.verb == "usage":  # somebody switched it, or wants to see it
            self._duty.save_usage()
            return {}
        if ask.verb == "stop":
            self._processes.stopping.set()
            return {}
        raise OperationError(f"the agent has no verb {ask.verb!r}")

    async def append(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Journal *events*; returns once they are durable.

        Raises:
            OperationError: the journal does not run, or refused.

        """
        if not self._processes.journal:
            raise OperationError("the journal is not running")
        return {"index": await self._processes.journal.append(*events)}

    @property
    def ready(self) -> bool:
        """Whether every process runs and every model answers."""
        return is_ready(self._processes, self._engines)

    @property
    def assurance(self) -> dict[str, Any]:
        """Return the level the vault found when it unlocked the keystore, why, and whether there is a way back."""
        children = self._processes.children
        facts = children["vault"].facts if "vault" in children else {}
        return {
            "level": facts.get("assurance", "L0"),
            "reasons": facts.get("reasons", []),
            "recovery": self.plan.notes.get("recovery", False),
        }

    def status(self) -> dict[str, Any]:
        """Return the facts `casemate status` shows (it adds what it can see itself)."""
        processes = self._processes
        return {
            "ready": self.ready,
            "endpoint": self._core.endpoint,
            "metrics": f"http://{host_port(self.plan.metrics)}/metrics",
            "pid": self.plan.notes.get("pid") or os.getpid(),
            "started": self._started,
            "models": self._engines.status(),
            "processes": [
                {"role": role, "pid": child.pid, "state": processes.policies[role].state.value, **child.facts}
                for role, child in processes.children.items()
            ],
            "assurance": self.assurance,
            "fleet": self._duty.status(),
            "notes": dict(self.plan.notes),
        }
