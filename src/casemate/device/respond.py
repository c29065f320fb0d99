"""The agent's obedience: commands are proven here, remembered, carried out and answered, in that order.

    delivered -> `verify_command` -> orders.json durable -> carried out -> answered (signed by the link) -> answer known

A crash at any arrow repeats the last step when the device starts again; every act is the same done twice. What does not
verify changes nothing: it is journaled, each time its count doubles, and not answered.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import itertools
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec

from casemate import __version__
from casemate.clock import Clock
from casemate.device.directed import Follower
from casemate.device.fleet import health, orders, stock
from casemate.device.fleet.destroy import Destroyed
from casemate.device.fleet.fence import Gate
from casemate.device.fleet.membership import Member
from casemate.device.fleet.orders import OrdersFile, State
from casemate.device.fleet.testimony import Testimony
from casemate.device.plan import DevicePlan, ServedModel
from casemate.device.usage.reporter import Reporter
from casemate.errors import CasemateError, OperationError, PolicyDeniedError, UntrustedDataError
from casemate.formats import envelope, event, fleet_api, ipc
from casemate.formats.envelope import RefusedCommandError, Verb, VerifiedCommand
from casemate.formats.tlog import VerifierKey

_REPORTED: Final = {State.QUARANTINED: "quarantined", State.WIPING: "wiped", State.WIPED: "wiped"}
_CONFINING: Final = frozenset({Verb.QUARANTINE, Verb.WIPE})
_GONE_WITHIN: Final = 5.0
_HTTPS: Final = 443


class Supervisor(Protocol):
    """What is asked of the agent."""

    plan: DevicePlan
    clock: Clock

    @property
    def ready(self) -> bool:
        """Whether everything runs."""
        ...

    async def hold(self) -> None:
        """End every engine and the vault: keys and weights leave memory; nothing is served until `resume`."""
        ...

    async def resume(self) -> None:
        """Serve again; nothing happens when it does."""
        ...

    async def destroy_keys(self) -> Destroyed:
        """Destroy the home's keys."""
        ...

    async def fence(self, gate: Gate | None) -> str:
        """Cut the network down to *gate*, or (None) open it; returns why that could not be done, or nothing."""
        ...

    def tell_link(self, message: ipc.ToLinkProcess) -> None:
        """Post *message* to the link; one that is gone asks again when it is back."""
        ...

    def record(self, *events: dict[str, Any]) -> None:
        """Journal *events*."""
        ...

    def end(self, error: CasemateError) -> None:
        """Stop the device because of *error*."""
        ...

    def show_evidence(self) -> None:
        """Prove to the fleet what runs here, where a TPM can."""
        ...

    async def ask_chip(self, message: ipc.AskChip) -> ipc.ChipSaid:
        """Return what the TPM says to the fleet; that there is none, where none is."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> Any:
        """Run *work* beside everything else."""
        ...

    async def prove_log(self, old: int) -> ipc.LogProven | None:
        """Return the journal's request to its witness; None when there is none."""
        ...

    def keep_witnessed(self, note: bytes) -> None:
        """Keep a cosigned checkpoint beside the log."""
        ...


class Respondent:
    """One member's obedience."""

    def __init__(self, agent: Supervisor, member: Member) -> None:
        """Obey *member*'s fleet from where orders.json stands.

        Raises:
            UntrustedDataError: it is missing or damaged.
            PolicyDeniedError: this device was wiped.

        """
        self._agent = agent
        self.member = member
        self._file = OrdersFile(agent.plan.home)
        self.orders = self._file.read()
        orders.require_not_wiped(self.orders)
        self._anchor = agent.clock.monotonic()
        self._turn = asyncio.Lock()
        self._facts: dict[str, bool] = {}
        self._refusals: collections.Counter[str] = collections.Counter()
        self._posts: dict[int, asyncio.Future[ipc.Posted]] = {}
        self._numbers = itertools.count(1)
        self._gone = asyncio.Event()
        self._testimony = Testimony(agent, self.post, VerifierKey.parse(member.witness))
        self.usage = Reporter(agent.plan.home, agent, self.post, setting=agent.plan.settings["telemetry.usage"])
        self.follower = Follower(
            agent, agent.plan.home, member, running=agent.plan.generation, earliest=self.orders.signed
        )
        self.contact: dict[str, Any] = {}
        self._inventory = "", b""
        self.take_stock(((each, each.digest) for each in agent.plan.models), agent.plan.policy.apps)

    # -- what the agent asks

    def take_stock(self, models: Iterable[tuple[ServedModel, str]], brought: Mapping[str, str]) -> None:
        """Say from now on that *models* (and their digests) are served, and apps by the policies an update *brought*.

        The fleet asks for an inventory when its name is new.
        """
        digests = {app: hashlib.sha256(text.encode()).hexdigest() for app, text in brought.items()}
        found = stock.take(
            ((model.name, model.container or model.name, digest) for model, digest in models),
            {**self._agent.plan.policies, **digests},
        )
        self._inventory = stock.digest(found), fleet_api.encode(found)

    @property
    def may_serve(self) -> bool:
        """Whether the fleet lets this device serve."""
        return self.orders.state is State.SERVING

    def link_settings(self) -> dict[str, Any]:
        """Return what the link process starts with."""
        return {"signed": self.orders.signed, "address": self.orders.address, "enrol": self.member.url}

    def status(self) -> dict[str, Any]:
        """Return what `casemate status` shows of the fleet."""
        facts = {**self._facts, **self.contact, **self._testimony.facts}
        return {"state": self.orders.state.value, "reason": self.orders.reason, **facts}

    async def begin(self) -> None:
        """Carry out again what holds: after a reboot the fence is gone, a wipe may be half done, a release too."""
        last = self.orders.last
        async with self._turn:
            if not self.may_serve:
                await self._carry_out()
            elif last and self.orders.owed and last.command.verb == Verb.RELEASE:
                await self._fenced(None)

    async def post(self, path: str, body: bytes, deadline: float = 30.0) -> ipc.Posted:
        """Have *body* posted to the fleet; status 0 when nobody answered in time."""
        number = next(self._numbers)
        answer = self._posts[number] = asyncio.get_running_loop().create_future()
        try:
            self._agent.tell_link(ipc.Post(id=number, path=path, body=body))
            return await asyncio.wait_for(answer, deadline)
        except TimeoutError:
            return ipc.Posted(id=number, status=0)
        finally:
            del self._posts[number]

    # -- what the link says

    async def heard(self, message: ipc.FromLinkProcess) -> None:
        """Take one message of the link, in its turn."""
        if isinstance(message, ipc.Due):
            self._agent.tell_link(ipc.Report(id=message.id, facts=self._report()))
        elif isinstance(message, ipc.Posted):
            waiting = self._posts.get(message.id)
            if waiting and not waiting.done():
                waiting.set_result(message)
        elif isinstance(message, ipc.Forgotten):
            self._gone.set()
        elif isinstance(message, ipc.AskChip):
            self._agent.tell_link(await self._agent.ask_chip(message))
        else:
            async with self._turn:
                await self._in_turn(message)

    async def _in_turn(self, message: ipc.Ordered | ipc.AnswerSent | ipc.Picked | ipc.WordSent | ipc.Contact) -> None:
        if isinstance(message, ipc.Ordered):
            await self._ordered(message)
        elif isinstance(message, ipc.Picked):
            self.follower.picked(message, self._earliest(message.server_time))
        elif isinstance(message, ipc.WordSent):
            self.follower.sent(message)
            if message.accepted:  # from now on the word waits for proof, and what was proven before does not count
                self._agent.show_evidence()
        elif isinstance(message, ipc.AnswerSent):
            if message.accepted:
                await self._answer_known(message.name)
        else:
            await self._contacted(message)

    def _report(self) -> dict[str, Any]:
        state = _REPORTED.get(self.orders.state, "ok" if self._agent.ready else "degraded")
        return {
            "state": state,
            "agent": __version__,
            "clock": self._agent.clock.wall(),
            "sequence": self.orders.sequence,
            "health": health.gather(),
            "inventory": self._inventory[0],
            "generation": self.follower.running,
            "pick": self.follower.held(self._earliest(0.0)),
        }

    async def _contacted(self, message: ipc.Contact) -> None:
        now = self._agent.clock.wall()
        if not message.ok:
            told = {"certificate_ends": message.certificate_ends} if message.certificate_ends else {}
            self.contact = {**self.contact, "link": message.why, "cut_off": message.cut_off, **told}
            return
        self.contact = {
            "contact": int(now),
            "link": message.why or "connected",
            "clock_off_s": round(now - message.server_time),
            "certificate_ends": message.certificate_ends or self.contact.get("certificate_ends", 0),
        }
        if message.address and (message.address, message.port) != (self.orders.address, self.orders.port):
            with contextlib.suppress(OperationError):  # a full disk ends no device; the next contact says it again
                self._remember(msgspec.structs.replace(self.orders, address=message.address, port=message.port))
        if self.orders.state is State.WIPING and not self._facts.get("keys_destroyed"):
            await self._carry_out()
        if self.orders.owed:
            self._answer()
        self._agent.spawn(self._testimony.give())
        self._agent.spawn(self.usage.give())
        self.follower.owe()
        if message.inventory_wanted:
            self._agent.spawn(self._send_inventory())

    async def _send_inventory(self) -> None:
        await self.post("inventory", self._inventory[1])

    # -- obeying

    async def _ordered(self, message: ipc.Ordered) -> None:
        try:
            verified = envelope.verify_command(
                message.envelope,
                public=self.member.command,
                fleet=self.member.fleet,
                device=self.member.device,
                after=self.orders.sequence,
                earliest=self._earliest(message.server_time),
            )
        except UntrustedDataError as error:
            if not self._is_last(message):
                self._refuse(error)
                if isinstance(error, RefusedCommandError):
                    self._answer_no(message.name, error)
            return
        try:
            self._remember(self._obeyed(verified, message.name))
        except OperationError as error:
            if verified.verb in _CONFINING:
                raise  # what cannot be remembered is obeyed by ending: a device that is down serves nothing
            self.contact = {**self.contact, "link": error.message}
            return  # not obeyed and not answered, so it is delivered again
        detail = await self._carry_out()
        self._agent.record(
            event.fleet_command_obeyed(
                verb=verified.verb.value,
                sequence=verified.command.sequence,
                state=self.orders.state.value,
                detail=detail,
                now=self._agent.clock.wall(),
            )
        )
        self._answer(detail)
        if verified.verb is Verb.ATTEST:
            self._agent.show_evidence()

    def _earliest(self, server_time: float) -> float:
        """Return a moment that has certainly been reached: our own clock is not asked."""
        passed = self._agent.clock.monotonic() - self._anchor
        return max(self.orders.signed + passed, server_time)

    def _is_last(self, message: ipc.Ordered) -> bool:
        """Whether this is the command we obeyed last, delivered once more: then its answer was lost."""
        last = self.orders.last
        try:
            again = last is not None and envelope.parse(message.envelope, envelope.COMMAND_TYPE).digest == last.digest
        except UntrustedDataError:
            return False
        if again and last and not (self.orders.owed and last.name == message.name):  # else the contact before sent it
            self._remember(
                msgspec.structs.replace(self.orders, last=msgspec.structs.replace(last, name=message.name), owed=True)
            )
            self._answer()
        return again

    def _refuse(self, error: UntrustedDataError) -> None:
        self._refusals[error.check] += 1
        count = self._refusals[error.check]
        if count & (count - 1) == 0:
            now = self._agent.clock.wall()
            self._agent.record(
                event.fleet_command_refused(check=error.check, reason=error.message, count=count, now=now)
            )

    def _obeyed(self, verified: VerifiedCommand, name: str) -> orders.Orders:
        following = orders.obey(self.orders, verified, name, self._agent.clock.wall())
        if following.state is State.WIPING:
            return msgspec.structs.replace(following, owner=self._agent.plan.owner_public)
        return following

    def _remember(self, following: orders.Orders) -> None:
        """Make *following* durable: before it is acted upon, never after."""
        signed = self.orders.signed
        self._file.write(following)
        self.orders = following
        if following.signed != signed:
            self._anchor = self._agent.clock.monotonic()

    async def _carry_out(self) -> str:
        """Bring the device into the state that the orders say; returns what could not be done, in words."""
        if self.orders.state is State.SERVING:
            why = await self._fenced(None) if self._facts else ""
            self._facts = {}
            await self._agent.resume()
            return why
        await self._agent.hold()
        self._facts = {"engines_stopped": True, "keys_dropped": True}
        if self.orders.state is State.WIPING:
            await self._destroy()
        enrol = urlsplit(self.member.url).port or _HTTPS
        return await self._fenced(Gate(self.orders.address, self.orders.port, enrol))

    async def _fenced(self, gate: Gate | None) -> str:
        why = await self._agent.fence(gate)
        self._facts["network_fenced"] = gate is not None and not why
        self._agent.record(
            event.network_fenced(fenced=self._facts["network_fenced"], detail=why, now=self._agent.clock.wall())
        )
        return why

    async def _destroy(self) -> None:
        done = await self._agent.destroy_keys()
        self._facts = {
            **self._facts,
            "keys_destroyed": done.keys,
            "keystore_destroyed": done.keystore,
            "wrapped_keys_destroyed": done.slots,
            "keyfile_destroyed": done.keyfile,
            "floors_destroyed": done.floors,
        }
        if done.keys:
            now = self._agent.clock.wall()
            self._agent.record(event.keys_destroyed(what="models", count=done.containers, now=now))

    # -- answering

    def _answer(self, detail: str = "") -> None:
        """Send the answer to the last command; the fleet counts only what this device signed."""
        last = self.orders.last
        if last is None:
            return
        failed = last.command.verb == Verb.WIPE and not self._facts.get("keys_destroyed")
        answer = envelope.Answer(
            schema=1,
            fleet=self.member.fleet,
            device=self.member.device,
            sequence=last.command.sequence,
            verb=last.command.verb,
            command=last.digest,
            outcome="failed" if failed and last.outcome == "done" else last.outcome,
            time=max(0, int(self._agent.clock.wall())),
            detail=_plain(detail),
            facts=self._facts,
        )
        self._agent.tell_link(ipc.SendAnswer(name=last.name, payload=envelope.encode_answer(answer)))

    def _answer_no(self, name: str, error: RefusedCommandError) -> None:
        """Tell the fleet that a command of its own is never obeyed, or it would wait for an answer until it ends.

        Nothing is remembered: it is told again as often as it is delivered.
        """
        answer = envelope.Answer(
            schema=1,
            fleet=self.member.fleet,
            device=self.member.device,
            sequence=error.command.sequence,
            verb=error.command.verb,
            command=error.digest,
            outcome="refused",
            time=max(0, int(self._agent.clock.wall())),
            detail=_plain(error.message),
        )
        self._agent.tell_link(ipc.SendAnswer(name=name, payload=envelope.encode_answer(answer)))

    async def _answer_known(self, name: str) -> None:
        """Note that the fleet has the answer. When it was the proof of a wipe, the key that signed it goes too."""
        if self.orders.state is State.WIPING and not self._facts.get("keys_destroyed"):
            return
        following = orders.answered(self.orders, name)
        if following is self.orders:
            return
        self._remember(following)
        if following.state is State.WIPED:
            self._agent.tell_link(ipc.Forget())
            self._agent.end(
                PolicyDeniedError(
                    "this device was wiped by its fleet: its keys are destroyed",
                    hint="to begin anew, without the old models: `casemate device leave --yes`",
                )
            )

    async def forgotten(self) -> None:
        """Wait until the link has destroyed the device's key, if it was told to.

        Raises:
            OperationError: it did not say so in time.

        """
        if self.orders.state is State.WIPED:
            try:
                await asyncio.wait_for(self._gone.wait(), _GONE_WITHIN)
            except TimeoutError:
                raise OperationError("the link did not say that the device's key is destroyed") from None


def _plain(text: str) -> str:
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:200]
