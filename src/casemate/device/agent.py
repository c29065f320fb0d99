"""The supervisor: starts every process, wires their links, restarts what dies, answers `casemate status`.

It holds no key, no prompt and no byte of a model: descriptors of decrypted weights go from the vault to the engine
over a link the agent only made. Losing the agent stops the device (every child dies with it); losing a child is
repaired here, by the table in `device.supervisor`.

    start     journal -> attester -> link -> vault + gateway -> one engine per model (until then the gateway says 503)
    stop      gateway (drains) -> engines -> vault -> journal, within five seconds

A member of a fleet whose orders say so starts journal and link only, and serves when it is released.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from casemate.clock import Clock, SystemClock
from casemate.device.admin import CONTROL_SOCKET, LINKED_UPDATE_SOCKET, UPDATE_SOCKET, AdminServer
from casemate.device.channel import AsyncJournalClient, ChannelClosed
from casemate.device.children import (
    ChildDied,
    ChildProcess,
    link_pair,
    rebuild,
    start_child,
    wait_ready,
)
from casemate.device.launch import Launchers, OwnLaunchers
from casemate.device.plan import DevicePlan, Engine
from casemate.device.supervisor import RestartPolicy, State
from casemate.device.upkeep import Upkeep
from casemate.errors import CasemateError, HostError, OperationError
from casemate.formats import event, ipc

if TYPE_CHECKING:  # loaded for a member only: an agent that belongs to no fleet needs no cryptography
    from casemate.device.attest import Attestation
    from casemate.device.fleet.destroy import Destroyed
    from casemate.device.fleet.fence import Gate
    from casemate.device.fleet.membership import Member
    from casemate.device.respond import Respondent

READY_TIMEOUT: Final = 60.0
STOP_DRAIN: Final = 1.5
STOP_GRACE: Final = 0.7
LINK_PAUSE: Final = 60.0
"""Seconds before a link that keeps failing is tried again: a fleet must not be able to take its devices down."""
PROOF_WITHIN: Final = 10.0
QUARANTINED: Final = "quarantined"


class Agent:
    """One running device."""

    def __init__(self, plan: DevicePlan, clock: Clock | None = None, launchers: Launchers | None = None) -> None:
        """Run what *plan* says, in processes from *launchers* (its own children unless given); `run` starts it."""
        self.plan = plan
        self.launchers = launchers or OwnLaunchers()
        self.clock = clock or SystemClock()
        self.children: dict[str, ChildProcess] = {}
        self.engines = {model.name: Engine(model, RestartPolicy()) for model in plan.models}
        self.policies = {role: RestartPolicy() for role in ("journal", "vault", "gateway")}
        self.journal: AsyncJournalClient | None = None
        self._journal_links: dict[str, socket.socket] = {}
        self._vault_turn = asyncio.Lock()
        self._vault_replies: asyncio.Queue[Any] = asyncio.Queue()
        self._upkeep = Upkeep(self)
        self._respondent: Respondent | None = None
        self._proofs: dict[int, asyncio.Future[ipc.LogProven]] = {}
        self._attestation: Attestation | None = None
        self._kept: dict[str, asyncio.Task[None]] = {}
        self._held = False
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._fatal: CasemateError | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = self.clock.wall()

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or a fault that no restart repairs.

        Raises:
            CasemateError: the device cannot serve (first start failed for good, or the core needs triage).

        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        admin = AdminServer(self.plan.home.run / CONTROL_SOCKET, self.answer)
        upkeep = self._update_server()
        try:
            await self._start_journal()
            self._keep("journal", self._start_journal)
            await admin.start()
            await upkeep.start()
            await self._begin_measuring()
            await self._join(self.plan.member)
            if self._respondent is None or self._respondent.may_serve:
                await self._begin_serving()
            else:
                self.plan.report(f"the fleet holds this device: {self._respondent.orders.state.value}")
            self.spawn(self._announce_when_ready())
            if self.plan.unsettled:
                self.spawn(self._settle(upkeep))
            await self._stopping.wait()
        except ChildDied as died:
            raise died.error or OperationError(died.reason, hint="run `casemate doctor`") from died
        finally:
            if self._respondent:
                with contextlib.suppress(OperationError):
                    await self._respondent.forgotten()
            await self._stop()
            admin.close()
            upkeep.close()
        if self._fatal:
            raise self._fatal

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* for as long as the device runs; when it fails the device stops."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._stopping.is_set():
            self._fatal = error if isinstance(error, CasemateError) else OperationError(f"agent fault: {error!r}")
            self._stopping.set()

    async def _stop(self) -> None:
        self._stopping.set()
        reason = "needs triage" if self._fatal else "signal"
        self.record(event.device_stopped(reason=reason, now=self.clock.wall()))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        gateway = self.children.pop("gateway", None)
        if gateway:
            await gateway.stop(STOP_DRAIN)
        rest = [engine.child for engine in (*self.engines.values(), *self._upkeep.retired) if engine.child]
        rest += [child for role, child in self.children.items() if role != "journal"]
        await asyncio.gather(*(child.stop(STOP_GRACE) for child in rest))
        journal = self.children.pop("journal", None)
        if journal:
            await journal.stop(STOP_DRAIN)

    async def _announce_when_ready(self) -> None:
        while not self.ready:
            await self._changed.wait()
            self._changed.clear()
        self.plan.announce(self.endpoint)

    def _update_server(self) -> AdminServer:
        """Return where the update process asks: for less than the control socket gives, and for the vault."""
        guest = self.plan.update_uid
        name = UPDATE_SOCKET if guest is None else LINKED_UPDATE_SOCKET
        return AdminServer(self.plan.home.run / name, self._upkeep.answer, self._upkeep.ask_vault, guest=guest)

    async def _settle(self, server: AdminServer) -> None:
        """Run the update process once: it judges a trial by asking us, and goes back by asking us.

        One that fails says why in the journal and on its standard error; the next start tries again.
        """
        ours, theirs = link_pair()
        server.admit(ours)
        settings = {"settings": dict(self.plan.settings.values)}
        launch = self.launchers.core("update")
        with contextlib.suppress(ChildDied, HostError), theirs:
            child = await start_child(
                "update", launch, home=str(self.plan.home.path), settings=settings, fds={"agent": theirs.fileno()}
            )
            await child.exited

    def _report_death(self, who: str, died: ChildDied, after: str) -> None:
        reason = died.error.message if died.error else died.reason
        self.plan.report(f"{who} stopped ({reason}) and {after}")

    # -- the core: journal, vault, gateway -----------------------------------------------------------------------

    async def _begin_serving(self) -> None:
        """Start what is not running yet of vault, gateway and engines."""
        self._held = False
        core = {"vault": self._start_vault, "gateway": self._start_gateway}
        missing = {role: start for role, start in core.items() if role not in self.children}
        await asyncio.gather(*(start() for start in missing.values()))
        for role, start in missing.items():
            self._keep(role, start)
        for engine in list(self.engines.values()):
            engine.policy = RestartPolicy()
            self.adopt(engine)
        self.record(
            event.device_started(
                version=self.plan.notes["version"], assurance=self.assurance["level"], now=self.clock.wall()
            )
        )

    def _keep(self, role: str, start: Callable[[], Awaitable[None]]) -> None:
        self._kept[role] = self.spawn(self._keep_core(role, start))

    async def _keep_core(self, role: str, start: Callable[[], Awaitable[None]]) -> None:
        """Serve *role*'s messages; when it dies start it again, as its policy allows."""
        policy = self.policies[role]
        while True:
            child = self.children[role]
            policy.started(self.clock.monotonic())
            self._changed.set()
            died = await self._attend(child)
            while True:
                delay = policy.died(self.clock.monotonic(), died.reason, transient=died.transient)
                if delay is None:
                    raise died.error or OperationError(
                        f"{role} needs triage: {died.reason}", hint="see `casemate journal show`, then start again"
                    )
                self._report_death(f"the {role}", died, "is started again")
                await asyncio.sleep(delay)
                try:
                    await start()
                    self.record(event.process_restarted(role=role, cause=died.reason, now=self.clock.wall()))
                    break
                except ChildDied as again:
                    died = again

    async def _attend(self, child: ChildProcess) -> ChildDied:
        """Handle *child*'s messages until it dies; returns why."""
        pinging = asyncio.ensure_future(child.keep_pinging())
        try:
            while True:
                message, _ = await child.recv(timeout=1e9)
                await self._on_message(child, message)
        except ChildDied as died:
            child.kill()
            child.link.close()
            if child.role == "vault":
                await self._vault_replies.put(died)  # whoever waits for an answer gets none
            return died
        finally:
            pinging.cancel()  # when cancelled, the device stops: `_stop` lets the child finish its work

    async def _on_message(self, child: ChildProcess, message: Any) -> None:
        if isinstance(message, ipc.Pong):
            child.ponged(message)
        elif isinstance(message, ipc.LogProven | ipc.FromLinkProcess | ipc.FromAttester):
            self._on_word_from_outside(child, message)
        elif isinstance(message, ipc.Loaded | ipc.LoadFailed | ipc.FromVault):
            await self._vault_replies.put(message)
        elif isinstance(message, ipc.Rehearsed):
            self._upkeep.rehearsed(message)
        elif isinstance(message, ipc.EngineStuck) and message.model in self.engines:
            stuck = self.engines[message.model].child
            if stuck:
                stuck.kill()

    def _on_word_from_outside(
        self, child: ChildProcess, message: ipc.LogProven | ipc.FromLinkProcess | ipc.FromAttester
    ) -> None:
        """Take what journal, fleet or TPM say; each only from the process that may say it."""
        if isinstance(message, ipc.LogProven):
            proof = self._proofs.pop(message.id, None)
            if child.role == "journal" and proof and not proof.done():
                proof.set_result(message)
        elif isinstance(message, ipc.FromAttester):
            if child.role == "attester" and self._attestation:
                self._attestation.heard(message)
        elif child.role == "link" and self._respondent:
            self.spawn(self._respondent.heard(message))
            if isinstance(message, ipc.Contact) and message.attest_wanted:
                self.show_evidence()

    async def _start(self, role: str, settings: Mapping[str, Any], fds: Mapping[str, int]) -> ChildProcess:
        child = await start_child(
            role,
            self.launchers.core(role),
            home=str(self.plan.home.path),
            settings=settings,
            fds=fds,
        )
        try:
            await wait_ready(child, READY_TIMEOUT)
        except ChildDied:
            child.kill()
            raise
        self.children[role] = child
        return child

    async def _start_journal(self) -> None:
        links = {role: link_pair() for role in ("agent", "vault", "gateway")}
        fds = {f"client:{role}": theirs.fileno() for role, (_, theirs) in links.items()}
        settings = {"owner_public": self.plan.owner_public, "origin_id": self.plan.home.id}
        try:
            await self._start("journal", settings, fds)
        finally:
            for _, theirs in links.values():
                theirs.close()
        if self.journal:
            self.journal.close()
        self.journal = AsyncJournalClient(links.pop("agent")[0])
        for role, (ours, _) in links.items():
            self._journal_links[role] = ours
            if role in self.children:  # the journal came back: its clients get new links, one that died its next
                with contextlib.suppress(ChannelClosed, OperationError):
                    self.children[role].link.post(ipc.Attach(role="journal"), [ours.fileno()])

    async def _journal_link(self, role: str) -> socket.socket:
        """Return the client end for *role*: made with the journal, or attached later when *role* was restarted."""
        fresh = self._journal_links.pop(role, None)
        if fresh:
            return fresh
        ours, theirs = link_pair()
        with theirs, contextlib.suppress(KeyError, ChannelClosed):
            await self.children["journal"].link.send(ipc.Attach(role=role), [theirs.fileno()])
        return ours

    async def _start_vault(self) -> None:
        with await self._journal_link("vault") as journal:
            settings = {name: self.plan.settings[f"engine.{name}"] for name in ("context", "slots")}
            await self._start("vault", settings, {**self.plan.unlock, "journal": journal.fileno()})

    async def _start_gateway(self) -> None:
        settings = {
            "hosts": list(self.plan.settings["hosts"]),
            "queue": self.plan.settings["engine.queue"],
            "deadline": self.plan.settings["engine.deadline"],
            "models": list(self.engines),
            "listen": self.endpoint,
        }
        with await self._journal_link("gateway") as journal:
            fds = {
                "listen": self.plan.listen.fileno(),
                "metrics": self.plan.metrics.fileno(),
                "journal": journal.fileno(),
                **self.plan.tls,
            }
            gateway = await self._start("gateway", settings, fds)
        self._upkeep.gateway_started()
        for engine in self.engines.values():  # a restarted gateway needs new links: engines serve one gateway each
            if engine.child and gateway:
                engine.child.kill()
            elif engine.policy.state is State.NEEDS_TRIAGE or self._held:
                self._tell_down(engine, None)

    # -- engines -------------------------------------------------------------------------------------------------

    async def keep_engine(self, engine: Engine) -> None:
        """Start one engine (unless it runs), restart it when it dies, leave it down when its policy says so."""
        while True:
            try:
                if not engine.child:
                    await self.start_engine(engine)
                assert engine.child
                engine.policy.started(self.clock.monotonic())
                self._changed.set()
                died = await self._attend(engine.child)
            except ChildDied as failed:
                died = failed
            engine.child = None
            if engine.retired:
                return
            delay = engine.policy.died(self.clock.monotonic(), died.reason, transient=died.transient)
            self._tell_down(engine, delay)
            name, now = engine.model.name, self.clock.wall()
            self.record(event.engine_crashed(model=name, cause=died.reason, now=now))
            if delay is None:
                self.record(event.engine_needs_triage(model=name, attempts=engine.policy.failures, now=now))
                if len(self.engines) == 1 and died.error and not self.plan.on_trial:
                    raise died.error  # the only model was refused: there is nothing to serve
                self._report_death(f"the engine of {name}", died, "stays down: see `casemate status`")
                return
            self._report_death(f"the engine of {name}", died, "is started again")
            await asyncio.sleep(delay)
            self.record(event.engine_restarted(model=name, attempt=engine.policy.failures, now=self.clock.wall()))

    def adopt(self, engine: Engine) -> None:
        """Serve *engine*'s model with it from now on; it is started unless it runs."""
        self.engines[engine.model.name] = engine
        engine.task = self.spawn(self.keep_engine(engine))

    async def start_engine(self, engine: Engine) -> None:
        """Run one engine up to `EngineUp`: it loads what the vault sends it, then the gateway gets its link.

        The vault decrypts while the process starts: the weights wait in their link.

        Raises:
            ChildDied: it did not come up; nothing of it is left.

        """
        began = self.clock.monotonic()
        gateway_end, engine_end = link_pair()
        vault_end, supply_end = link_pair()
        with gateway_end, vault_end:
            loading = asyncio.ensure_future(self._load(engine, vault_end))
            try:
                child = await start_child(
                    "engine",
                    self.launchers.engine(engine.model.name, replay=bool(engine.model.replay)),
                    home="/",
                    settings=self._engine_settings(engine),
                    fds={},
                    inherited=[engine_end.fileno(), supply_end.fileno()],
                )
            finally:
                engine_end.close()
                supply_end.close()
                await asyncio.wait([loading])  # also when the process did not start: the vault's turn must end
            engine.child = child
            try:
                loading.result()
                vault_end.close()
                if self._attestation and engine.digest:
                    await self._attestation.measure_model(engine.model.name, engine.digest)
                await wait_ready(child, self.plan.settings["engine.load_deadline"])
            except ChildDied:
                engine.child = None
                child.kill()
                raise
            engine.seconds = self.clock.monotonic() - began
            self._record_ready(engine, child)
            up = ipc.EngineUp(
                model=engine.model.name,
                digest=engine.digest,
                slots=int(child.facts.get("slots", self.plan.settings["engine.slots"])),
                context=int(child.facts.get("context", 0)),
                created=int(self.clock.wall()),
            )
            self.tell_gateway(up, gateway_end)

    def _record_ready(self, engine: Engine, child: ChildProcess) -> None:
        name, now = engine.model.name, self.clock.wall()
        layers = ("namespaces", f"landlock-{child.facts.get('landlock_abi', 0)}", "seccomp")
        self.record(
            event.sandbox_started(model=name, pid=child.pid, layers=layers, now=now),
            event.engine_ready(model=name, digest=engine.digest, seconds=engine.seconds, now=now),
        )

    def _vault_settings(self) -> dict[str, Any]:
        wanted = self.plan.settings
        return {"context": wanted["engine.context"], "slots": wanted["engine.slots"]}

    def _engine_settings(self, engine: Engine) -> dict[str, Any]:
        wanted = self.plan.settings
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

        """
        if engine.model.replay:
            return
        request = ipc.Load(model=engine.model.container or engine.model.name, path=engine.model.path)
        deadline = self.plan.settings["engine.load_deadline"]
        reply = await self.ask_vault(request, [vault_end.fileno()], deadline)
        if isinstance(reply, ipc.LoadFailed):
            passing = reply.code == OperationError.code  # no memory, the engine went away: may be better next time
            raise ChildDied(f"model refused: {reply.message}", transient=passing, error=rebuild(reply))
        engine.digest, engine.bytes = reply.digest, reply.bytes

    async def ask_vault(self, request: ipc.Load | ipc.ToVault, fds: Sequence[int], deadline: float) -> Any:
        """Return the vault's answer to *request*, which comes within *deadline* seconds; one request at a time.

        Raises:
            ChildDied: the vault is gone or did not answer: worth another try.

        """
        if "vault" not in self.children:
            raise ChildDied(f"the vault does not run: this device is {QUARANTINED}", transient=False)
        async with self._vault_turn:
            while not self._vault_replies.empty():
                self._vault_replies.get_nowait()
            try:
                await self.children["vault"].link.send(request, fds)
                reply = await asyncio.wait_for(self._vault_replies.get(), deadline)
            except (ChannelClosed, OperationError, TimeoutError) as error:
                raise ChildDied("the vault did not answer") from error
        if isinstance(reply, ChildDied):
            raise ChildDied("the vault ended before it answered")
        return reply

    def _tell_down(self, engine: Engine, delay: float | None) -> None:
        """Tell the gateway that *engine* is down, for *delay* seconds or (None) until somebody looks."""
        again = None if delay is None else max(1, round(delay))
        reason = QUARANTINED if self._held else engine.policy.state.value
        self.tell_gateway(ipc.EngineDown(model=engine.model.name, reason=reason, retry_after=again))

    def tell_gateway(self, message: ipc.Message, link: socket.socket | None = None) -> None:
        """Post *message* to the gateway; one that is gone is told when it is back."""
        with contextlib.suppress(KeyError, ChannelClosed):
            self.children["gateway"].link.post(message, [link.fileno()] if link else [])

    # -- the TPM (`device.attest` decides, this starts processes) ---------------------------------------------------

    async def _begin_measuring(self) -> None:
        """Start the attester where there is a TPM: what runs and by which policies is measured before it is used."""
        if not self.plan.settings["keystore.tpm"]:
            return
        from casemate.device.attest import Attestation  # noqa: PLC0415 - a device without a TPM needs none of it

        self._attestation = Attestation()
        self.policies["attester"] = RestartPolicy()
        await self._start_attester()
        self._keep("attester", self._start_attester)
        await self._attestation.measure_policies(self.plan.policies)

    def show_evidence(self) -> None:
        """Have the fleet judge what runs here; without a TPM there is nothing to show."""
        if self._attestation and self._respondent:
            self.spawn(self._attestation.judge(self._respondent))

    async def _start_attester(self) -> None:
        assert self._attestation
        child = await self._start("attester", {"tpm": self.plan.settings["keystore.tpm"]}, {})
        self._attestation.started(child)

    # -- the fleet (`device.respond` decides, this carries out) --------------------------------------------------------

    async def _join(self, member: Member | None) -> None:
        """Obey *member*'s fleet from now on: what its orders say holds before anything is served."""
        if member is None or self._respondent:
            return
        from casemate.device.respond import Respondent  # noqa: PLC0415 - see the import of types above

        self._respondent = Respondent(self, member)
        await self._respondent.begin()
        self.spawn(self._keep_link())

    async def _keep_link(self) -> None:
        """Run the link for ever; one that keeps dying is tried once a minute, and never takes the device down."""
        assert self._respondent
        policy = RestartPolicy()
        while True:
            try:
                link = await self._start("link", self._respondent.link_settings(), {})
                policy.started(self.clock.monotonic())
                self.policies["link"] = policy
                died = await self._attend(link)
            except ChildDied as failed:
                died = failed
            del self.children["link"]
            delay = policy.died(self.clock.monotonic(), died.reason)
            self._report_death("the link to the fleet", died, "is started again")
            self.record(event.process_restarted(role="link", cause=died.reason, now=self.clock.wall()))
            await asyncio.sleep(LINK_PAUSE if delay is None else delay)

    async def hold(self) -> None:
        """End every engine and the vault at once: keys and weights leave memory. The gateway stays, and refuses."""
        self._held = True
        tasks = [engine.task for engine in self.engines.values() if engine.task]
        tasks += [task for role, task in self._kept.items() if role == "vault"]
        for task in tasks:
            task.cancel()
        ending = [child for role, child in self.children.items() if role == "vault"]
        for vault in ending:
            vault.kill()
        await self._vault_replies.put(ChildDied(f"this device is {QUARANTINED}"))  # whoever waits for it gets none
        await asyncio.gather(*tasks, return_exceptions=True)
        ending += [engine.child for engine in (*self.engines.values(), *self._upkeep.retired) if engine.child]
        for child in ending:
            child.kill()
        await asyncio.gather(*(child.stop(STOP_GRACE) for child in ending))
        self.children.pop("vault", None)
        self._kept.pop("vault", None)
        for engine in self.engines.values():
            engine.child = engine.task = None
            self._tell_down(engine, None)

    async def resume(self) -> None:
        """Serve again after `hold`."""
        if self._held:
            await self._begin_serving()

    async def destroy_keys(self) -> Destroyed:
        """Have a process with the vault's rights destroy the home's keys; it unlocks nothing."""
        from casemate.device.fleet.destroy import Destroyed  # noqa: PLC0415 - see the import of types above

        settings = {"task": "destroy", "keyfile": _path_of(self.plan.unlock.get("keyfile"))}
        gone = Destroyed(keystore=False, slots=False, containers=0, keyfile=False, floors=False)
        with contextlib.suppress(ChildDied):
            vault = await self._start("vault", settings, {})
            gone = msgspec.convert(vault.facts, Destroyed)
            await self.children.pop("vault").stop(STOP_GRACE)
        shredded = await self.launchers.shred_keyfile()
        return msgspec.structs.replace(gone, keyfile=gone.keyfile or shredded)

    async def fence(self, gate: Gate | None) -> str:
        """Cut the network down to *gate*, or (None) open it; returns why that could not be done, or nothing."""
        return await self.launchers.fence(msgspec.json.encode(gate))

    def tell_link(self, message: ipc.ToLinkProcess) -> None:
        """Post *message* to the link; one that is gone asks again when it is back."""
        with contextlib.suppress(KeyError, ChannelClosed, OperationError):
            self.children["link"].link.post(message)

    async def prove_log(self, old: int) -> ipc.LogProven | None:
        """Return the journal's request to its witness, proven from *old* entries on; None when it does not answer."""
        number = len(self._proofs) + 1
        proof = self._proofs[number] = asyncio.get_running_loop().create_future()
        try:
            await self.children["journal"].link.send(ipc.ProveLog(id=number, old=old))
            return await asyncio.wait_for(proof, PROOF_WITHIN)
        except (KeyError, ChannelClosed, TimeoutError):
            return None
        finally:
            self._proofs.pop(number, None)

    def keep_witnessed(self, note: bytes) -> None:
        """Have the journal keep a cosigned checkpoint."""
        with contextlib.suppress(KeyError, ChannelClosed, OperationError):
            self.children["journal"].link.post(ipc.KeepWitnessed(note=note))

    def end(self, error: CasemateError) -> None:
        """Stop the device because of *error*."""
        self._fatal = error
        self._stopping.set()

    # -- what others may ask ---------------------------------------------------------------------------------------

    def record(self, *events: dict[str, Any]) -> None:
        """Journal *events* without waiting; a dead journal is being restarted and says so itself."""
        with contextlib.suppress(OperationError):
            if self.journal:
                self.journal.post(*events)

    @property
    def ready(self) -> bool:
        """Whether every process runs and every model answers."""
        if self._held or "vault" not in self.children:
            return False
        core = all(policy.state is State.RUNNING for policy in self.policies.values())
        return core and all(engine.policy.state is State.RUNNING for engine in self.engines.values())

    @property
    def assurance(self) -> dict[str, Any]:
        """Return the level the vault found when it unlocked the keystore, why, and whether there is a way back."""
        facts = self.children["vault"].facts if "vault" in self.children else {}
        return {
            "level": facts.get("assurance", "L0"),
            "reasons": facts.get("reasons", []),
            "recovery": self.plan.notes.get("recovery", False),
        }

    @property
    def endpoint(self) -> str:
        """Return the API's base URL."""
        return f"{'https' if self.plan.tls else 'http'}://{_host_port(self.plan.listen)}"

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
            from casemate.device.fleet.membership import read_member  # noqa: PLC0415 - see the import of types above

            await self._join(read_member(self.plan.home))
            return {}
        if ask.verb == "stop":
            self._stopping.set()
            return {}
        raise OperationError(f"the agent has no verb {ask.verb!r}")

    async def append(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Journal *events*; returns once they are durable.

        Raises:
            OperationError: the journal does not run, or refused.

        """
        if not self.journal:
            raise OperationError("the journal is not running")
        return {"index": await self.journal.append(*events)}

    def status(self) -> dict[str, Any]:
        """Return the facts `casemate status` shows (it adds what it can see itself)."""
        return {
            "ready": self.ready,
            "endpoint": self.endpoint,
            "metrics": f"http://{_host_port(self.plan.metrics)}/metrics",
            "pid": self.plan.notes.get("pid") or os.getpid(),
            "started": self._started,
            "models": [self._model_status(engine) for engine in self.engines.values()],
            "processes": [
                {"role": role, "pid": child.pid, "state": self.policies[role].state.value, **child.facts}
                for role, child in self.children.items()
            ],
            "assurance": self.assurance,
            "fleet": self._fleet_status(),
            "notes": dict(self.plan.notes),
        }

    def _fleet_status(self) -> dict[str, Any] | None:
        if self._respondent is None:
            return None
        return {**self._respondent.status(), **(self._attestation.result if self._attestation else {})}

    def _model_state(self, engine: Engine) -> str:
        if self._held:
            return QUARANTINED
        return "ready" if engine.policy.state is State.RUNNING else engine.policy.state.value

    def _model_status(self, engine: Engine) -> dict[str, Any]:
        return {
            "name": engine.model.name,
            **({"container": engine.model.container} if engine.model.container else {}),
            "digest": engine.digest,
            "bytes": engine.bytes,
            "state": self._model_state(engine),
            "reason": engine.policy.reason,
            "failures": engine.policy.failures,
            "pid": engine.child.pid if engine.child else None,
            "ready_after": round(engine.seconds, 3),
            "memory_mib": round(engine.child.memory / 1024, 1) if engine.child else 0,
            "engine": dict(engine.child.facts) if engine.child else {},
        }


def _path_of(fd: int | None) -> str:
    return "" if fd is None else str(Path(f"/proc/self/fd/{fd}").readlink())


def _host_port(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
