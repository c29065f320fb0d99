"""What a fleet asks for, done to the device's processes: `device.respond` decides, this carries out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from casemate.device.children import ChildDied
from casemate.device.chip import Chip
from casemate.device.core import QUARANTINED, Core
from casemate.device.engines import Engines
from casemate.device.leases import REFUSED, Leases
from casemate.device.plan import Engine
from casemate.device.processes import Processes
from casemate.device.supervisor import RestartPolicy
from casemate.errors import CasemateError, HostError, OperationError
from casemate.formats import event, ipc

if TYPE_CHECKING:  # loaded for a member only: an agent that belongs to no fleet needs no cryptography
    from casemate.device.fleet.destroy import Destroyed
    from casemate.device.fleet.fence import Gate
    from casemate.device.fleet.membership import Member
    from casemate.device.respond import Respondent

STOP_GRACE: Final = 0.7
_WRAP_WITHIN: Final = 30.0
_CONTACT_WITHIN: Final = 30.0
_DROP_WITHIN: Final = 2.0
"""Seconds that a quarantine waits for the TPM, which may be busy or stuck: five are promised for all of it."""
LINK_PAUSE: Final = 60.0
"""Seconds before a link that keeps failing is tried again: a fleet must not be able to take its devices down."""


class Duty:
    """One device's duties to its fleet; a device that belongs to none has none."""

    def __init__(
        self,
        processes: Processes,
        core: Core,
        chip: Chip,
        engines: Callable[[], Engines],
        *,
        retired: Callable[[], list[Engine]],
        serve: Callable[[], Coroutine[Any, Any, None]],
        take: Callable[[], Awaitable[None]] | None,
    ) -> None:
        """Act on *processes*, *core*, *chip* and *engines*; *retired* are those that only finish, *serve* starts all.

        *take* runs the update process for what the fleet's director says; None: a timer does.
        """
        self._processes = processes
        self._core = core
        self._chip = chip
        self._engines = engines
        self._retired = retired
        self._serve = serve
        self._take = take
        self.plan = processes.plan
        self.clock = processes.clock
        self.leases = Leases(self, self.clock)
        self._starting: asyncio.Future[None] | None = None
        self._in_contact = asyncio.Event()
        self.respondent: Respondent | None = None

    # -- keys of gated models

    def show_evidence(self) -> None:
        """Have the fleet judge what runs here; without a TPM there is nothing to show."""
        if self.respondent:
            self._chip.show_evidence(self.respondent)

    async def ask_key(self, model: str) -> tuple[int, str]:
        """Prove what runs here and ask the fleet for *model*'s key; returns its status (0: no answer) and why not.

        Raises:
            CasemateError: the attester failed.

        """
        if self.respondent is None:
            return REFUSED, "this device belongs to no fleet (`casemate device enrol`)"
        if not self.may_serve:
            return REFUSED, f"this device is {self.state}"
        try:
            async with asyncio.timeout(_CONTACT_WITHIN):
                await self._in_contact.wait()
        except TimeoutError:
            return 0, "the fleet was not reached"
        answer = await self._chip.ask_key(self.respondent, model)
        if not self.respondent.may_serve:  # its order came while we asked
            await self._drop_keys()
            return REFUSED, f"this device is {self.state}"
        return answer

    async def use_key(self, model: str, into: int) -> float:
        """Have *model*'s key written into the descriptor *into*; returns the seconds its lease still has.

        Raises:
            CasemateError: there is no lease, it is over, or the attester failed.

        """
        return await self._chip.use_key(model, into)

    async def wrap_key(self, request: ipc.WrapKey, fds: Sequence[int]) -> ipc.FromVault:
        """Have the vault wrap a new container's data key, which came along, under its model's gated key.

        Raises:
            CasemateError: the fleet gives no key, or was not reached.

        """
        try:
            async with self.leases.obtained(request.model) as key:
                keyed = msgspec.structs.replace(request, keyed=True)
                reply: ipc.FromVault = await self._core.ask_vault(keyed, [fds[0], key], _WRAP_WITHIN)
        except ChildDied as died:
            raise died.error or OperationError(died.reason, hint="try again") from died
        return reply

    async def _drop_keys(self, *, forever: bool = False) -> None:
        """Forget every lease, here and in the TPM's keeping; what cannot be forgotten now ends by itself."""
        self.leases.forget()
        with contextlib.suppress(CasemateError):
            await self._chip.drop_keys(forever=forever)

    # -- the link

    async def join(self, member: Member | None) -> None:
        """Obey *member*'s fleet from now on: what its orders say holds before anything is served."""
        if member is None or self.respondent:
            return
        from casemate.device.respond import Respondent  # noqa: PLC0415 - see the import of types above

        self.respondent = Respondent(self, member)
        await self.respondent.begin()
        self.spawn(self._keep_link())
        if self._take:
            self.spawn(self.respondent.follower.attend(self._take, lambda: self.may_serve and self.ready))

    async def _keep_link(self) -> None:
        """Run the link for ever; one that keeps dying is tried once a minute, and never takes the device down."""
        assert self.respondent
        processes, policy = self._processes, RestartPolicy()
        while True:
            try:
                link = await processes.start("link", self.respondent.link_settings(), {})
                policy.started(self.clock.monotonic())
                processes.policies["link"] = policy
                died = await processes.attend(link)
            except ChildDied as failed:
                died = failed
            except HostError as error:
                died = ChildDied(error.message, error=error)
            processes.children.pop("link", None)  # one that did not come up is not there
            delay = policy.died(self.clock.monotonic(), died.reason)
            processes.report_death("the link to the fleet", died, "is started again")
            self.record(event.process_restarted(role="link", cause=died.reason, now=self.clock.wall()))
            await asyncio.sleep(LINK_PAUSE if delay is None else delay)

    def heard_of_fleet(self, message: ipc.FromLinkProcess) -> None:
        """Take what the link says."""
        if self.respondent is None:
            return
        self.spawn(self.respondent.heard(message))
        if isinstance(message, ipc.Contact):
            (self._in_contact.set if message.ok else self._in_contact.clear)()
            if message.attest_wanted:
                self.show_evidence()

    async def ask_chip(self, message: ipc.AskChip) -> ipc.ChipSaid:
        """Return what the TPM says to the fleet, which takes this device's certificate no more."""
        return await self._chip.come_back(message)

    def heard_of_use(self, message: ipc.Used) -> None:
        """Take what the gateway counted."""
        if self.respondent:
            self.respondent.usage.count(message)

    def save_usage(self) -> None:
        """Obey the owner's word on usage reports, and write down what was counted."""
        if self.respondent:
            self.respondent.usage.save()

    def tell_link(self, message: ipc.ToLinkProcess) -> None:
        """Post *message* to the link; one that is gone asks again when it is back."""
        self._processes.tell("link", message)

    def direction(self) -> dict[str, Any]:
        """Return what the fleet's director says, for an update; nobody's device is free."""
        if self.respondent:
            return self.respondent.follower.direction.as_message()
        return {"directed": False}  # as `FREE` says it

    def stands(self, facts: dict[str, Any], policies: Mapping[str, str]) -> None:
        """Take the update process's word about where things stand; it brought *policies* (text by app)."""
        if self.respondent:
            from casemate.device.directed import Stand  # noqa: PLC0415 - see the import of types above

            follower = self.respondent.follower
            before = follower.running
            follower.stands(msgspec.convert(facts, Stand))
            if follower.running != before:
                engines = self._engines().by_name.values()
                self.respondent.take_stock(((engine.model, engine.digest) for engine in engines), policies)

    # -- orders

    async def begin(self) -> None:
        """Serve, unless the fleet holds this device; an order that comes while it starts ends the start.

        Raises:
            ChildDied: what it needs did not come up.

        """
        if not self.may_serve:
            return
        self._starting = asyncio.ensure_future(self._serve())
        try:
            await asyncio.wait([self._starting])
        finally:
            self._starting.cancel()  # it is over, unless nobody waits for it any more
        if not self._starting.cancelled():
            self._starting.result()

    async def hold(self) -> None:
        """End every engine and the vault at once: keys and weights leave memory. The gateway stays, and refuses."""
        processes, engines = self._processes, self._engines()
        if self._starting:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        engines.held = True
        tasks = [engine.task for engine in engines.by_name.values() if engine.task]
        tasks += [task for role, task in processes.kept.items() if role == "vault"]
        for task in tasks:
            task.cancel()
        ending = [child for role, child in processes.children.items() if role == "vault"]
        for vault in ending:
            vault.kill()
        self.leases.forget()
        await self._core.vault_said(ChildDied(f"this device is {QUARANTINED}"))
        await asyncio.gather(*tasks, return_exceptions=True)
        ending += [engine.child for engine in (*engines.by_name.values(), *self._retired()) if engine.child]
        for child in ending:
            child.kill()
        await asyncio.gather(*(child.stop(STOP_GRACE) for child in ending))
        processes.children.pop("vault", None)
        processes.kept.pop("vault", None)
        for engine in engines.by_name.values():
            engine.child = engine.task = None
            engines.tell_down(engine, None)
        with contextlib.suppress(TimeoutError):  # nothing is left that could use one, and the fence must not wait
            async with asyncio.timeout(_DROP_WITHIN):
                await self._drop_keys()

    async def resume(self) -> None:
        """Serve again after `hold`."""
        if self._engines().held:
            await self.begin()

    async def destroy_keys(self) -> Destroyed:
        """Have a process with the vault's rights destroy the home's keys; it unlocks nothing."""
        from casemate.device.fleet.destroy import Destroyed  # noqa: PLC0415 - see the import of types above

        settings = {"task": "destroy", "keyfile": _path_of(self.plan.unlock.get("keyfile"))}
        gone = Destroyed(keystore=False, slots=False, containers=0, keyfile=False, floors=False)
        with contextlib.suppress(ChildDied):
            vault = await self._processes.start("vault", settings, {})
            gone = msgspec.convert(vault.facts, Destroyed)
            await self._processes.children.pop("vault").stop(STOP_GRACE)
        await self._drop_keys(forever=True)
        shredded = await self._processes.launchers.shred_keyfile()
        return msgspec.structs.replace(gone, keyfile=gone.keyfile or shredded)

    async def fence(self, gate: Gate | None) -> str:
        """Cut the network down to *gate*, or (None) open it; returns why that could not be done, or nothing."""
        return await self._processes.launchers.fence(msgspec.json.encode(gate))

    # -- what `device.respond` asks beside

    @property
    def ready(self) -> bool:
        """Whether every process runs and every model answers."""
        return is_ready(self._processes, self._engines())

    @property
    def may_serve(self) -> bool:
        """Whether the fleet, if there is one, lets this device serve."""
        return self.respondent is None or self.respondent.may_serve

    @property
    def state(self) -> str:
        """Return what the fleet's orders say, in a word."""
        return self.respondent.orders.state.value if self.respondent else ""

    async def finish(self) -> None:
        """Wait for what must be done before the device ends.

        Raises:
            OperationError: the link did not say in time that the device's key is destroyed.

        """
        self.save_usage()
        if self.respondent:
            await self.respondent.forgotten()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* for as long as the device runs."""
        return self._processes.spawn(work)

    def record(self, *events: dict[str, Any]) -> None:
        """Journal *events* without waiting."""
        self._processes.record(*events)

    async def prove_log(self, old: int) -> ipc.LogProven | None:
        """Return the journal's request to its witness; None when there is none."""
        return await self._core.prove_log(old)

    def keep_witnessed(self, note: bytes) -> None:
        """Have the journal keep a cosigned checkpoint."""
        self._processes.tell("journal", ipc.KeepWitnessed(note=note))

    def end(self, error: CasemateError) -> None:
        """Stop the device because of *error*."""
        self._processes.end(error)

    def status(self) -> dict[str, Any] | None:
        """Return what `casemate status` shows of the fleet; None: there is none."""
        if self.respondent is None:
            return None
        return {**self.respondent.status(), **self._chip.result}


def is_ready(processes: Processes, engines: Engines) -> bool:
    """Return whether every process runs and every model answers."""
    return "vault" in processes.children and processes.all_running and engines.ready


def _path_of(fd: int | None) -> str:
    return "" if fd is None else str(Path(f"/proc/self/fd/{fd}").readlink())
