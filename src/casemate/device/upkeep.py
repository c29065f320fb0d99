"""What an update may ask of a running device: its vault, other engines for its models, and a rehearsal.

A model changes engines in one of two ways:

    beside     the new engine starts while the old one serves; once it is ready the gateway turns to it, and the old
               one ends with its last answer. A new engine that does not come up changes nothing.
    in turn    where two do not fit (memory, or one unit per model): the gateway holds its queue, the old engine ends
               with its last answer, the new one starts, the queue goes on. One that does not come up is replaced by
               the old one again. Requests wait, they do not fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import socket
from collections.abc import Awaitable, Sequence
from typing import Any, Final, Protocol

import msgspec

from casemate.device.children import ChildDied
from casemate.device.launch import Launchers
from casemate.device.leases import Leases
from casemate.device.plan import DevicePlan, Engine, ServedModel
from casemate.device.supervisor import RestartPolicy, State
from casemate.errors import CasemateError, OperationError
from casemate.formats import ipc

TRANSCODE_DEADLINE: Final = 6 * 3600.0
"""Seconds one request to the vault may take: a large model on a slow card."""
_DRAIN_GRACE: Final = 10.0


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model to serve from now on: its name, what its container is called, and what its fleet calls a gated one.

    *waits*: one without a lease takes its place, and starts when its fleet grants one.
    """

    name: str
    container: str
    gate: str = ""
    waits: bool = False


class Rehearsal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One prompt to ask."""

    model: str
    prompt: str
    max_tokens: int
    seconds: float


class Supervisor(Protocol):
    """What is asked of the agent."""

    plan: DevicePlan
    launchers: Launchers

    @property
    def engines(self) -> dict[str, Engine]:
        """The engines by the names of their models."""
        ...

    @property
    def leases(self) -> Leases:
        """The leases on the keys of gated models."""
        ...

    async def start_engine(self, engine: Engine) -> None:
        """Bring *engine* up and turn the gateway to it; raises ChildDied."""
        ...

    def adopt(self, engine: Engine) -> None:
        """Keep *engine* from now on."""
        ...

    def tell_gateway(self, message: ipc.Message, link: socket.socket | None = None) -> None:
        """Post *message* to the gateway."""
        ...

    async def ask_vault(self, request: ipc.Load | ipc.ToVault, fds: Sequence[int], deadline: float) -> Any:
        """Return the vault's answer; raises ChildDied."""
        ...

    async def measure_taken(self, policy: ipc.TakePolicy) -> None:
        """Measure what an update says about apps and the guard; raises ChildDied."""
        ...

    async def measure_generation(self, content: str) -> None:
        """Measure which generation is served from now on; raises ChildDied."""
        ...

    async def raise_floor(self, number: int) -> None:
        """Have the TPM's counter of updates raised to *number*; raises OperationError."""
        ...

    async def append(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Journal *events*."""
        ...

    def status(self) -> dict[str, Any]:
        """Return what `casemate status` shows."""
        ...

    def direction(self) -> dict[str, Any]:
        """Return what the fleet's director says."""
        ...

    def stands(self, facts: dict[str, Any]) -> None:
        """Hear where an update stands."""
        ...


class Upkeep:
    """The agent's part of an update."""

    def __init__(self, agent: Supervisor) -> None:
        """Change engines of *agent*."""
        self._agent = agent
        self._turn = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[ipc.Rehearsed]] = {}
        self.policy = agent.plan.policy
        self.retired: list[Engine] = []

    async def ask_vault(self, request: ipc.ToVault, fds: Sequence[int]) -> ipc.FromVault:
        """Pass *request* with its descriptors on and return the vault's answer.

        What needs the key of a gated model gets it here. It is asked for anew when a release is opened: a lease from
        before proves nothing about the device that takes this one.

        Raises:
            PolicyDeniedError: the fleet gives no key.
            OperationError: the vault is gone, or the fleet was not reached.

        """
        agent = self._agent
        try:
            if not isinstance(request, ipc.OpenRelease | ipc.Transcode):
                reply: ipc.FromVault = await agent.ask_vault(request, fds, TRANSCODE_DEADLINE)
                return reply
            request = msgspec.structs.replace(request, keyed=False)
            fds = fds[: ipc.descriptors(request)]  # whoever asks brings no key
            async with contextlib.AsyncExitStack() as held:
                if request.gate:
                    anew = isinstance(request, ipc.OpenRelease)
                    key = await held.enter_async_context(agent.leases.obtained(request.gate, anew=anew))
                    request, fds = msgspec.structs.replace(request, keyed=True), [*fds, key]
                reply = await agent.ask_vault(request, fds, TRANSCODE_DEADLINE)
        except ChildDied as died:
            raise died.error or OperationError(died.reason, hint="try again") from died
        return reply

    async def answer(self, ask: ipc.Ask) -> dict[str, Any]:
        """Do what an update asks.

        Raises:
            OperationError: unknown verb; the new engine did not come up, and the old one serves.
            UntrustedDataError: the new engine, or the vault, refused the model; the old one serves.

        """
        try:
            if ask.verb == "status":
                return {**self._agent.status(), "owner": self._agent.plan.owner_public}
            if ask.verb == "record":
                return await self._agent.append(own_events(ask.args["events"]))
            if ask.verb == "direction":
                return self._agent.direction()
            if ask.verb == "stands":
                self._agent.stands(ask.args)
                return {}
            if ask.verb == "lease":
                await self._agent.leases.obtain(str(ask.args["gate"]))
                return {}
            if ask.verb == "floor":
                await self._agent.raise_floor(int(ask.args["number"]))
                return {}
            return await self._change_serving(ask)
        except msgspec.ValidationError as error:
            raise OperationError(f"wrong arguments: {error}") from error

    async def _change_serving(self, ask: ipc.Ask) -> dict[str, Any]:
        if ask.verb == "serve":
            return await self._serve(msgspec.convert(ask.args["model"], Wanted))
        if ask.verb == "drop":
            return await self._drop(str(ask.args["name"]))
        if ask.verb == "policy":
            return await self._take_policy(msgspec.convert(ask.args, ipc.TakePolicy))
        if ask.verb == "generation":
            await _measured(self._agent.measure_generation(str(ask.args["content"])))
            return {}
        if ask.verb == "rehearse":
            return await self._rehearse(msgspec.convert(ask.args, Rehearsal))
        raise OperationError(f"the agent has no verb {ask.verb!r}")

    # -- engines

    async def _serve(self, wanted: Wanted) -> dict[str, Any]:
        fresh = Engine(ServedModel(wanted.name, "", container=wanted.container, gate=wanted.gate), RestartPolicy())
        async with self._turn:
            old = self._agent.engines.get(wanted.name)
            same = old and (old.model.container or old.model.name) == wanted.container
            if old and same and old.policy.state is not State.NEEDS_TRIAGE:
                return {"seconds": 0.0, "way": "nothing to do"}
            if wanted.gate and not await self._leased(wanted):
                await self._leave(old)
                self._agent.adopt(fresh)
                return {"seconds": 0.0, "way": "waits for its fleet"}
            try:
                way = await self._change(old, fresh)
            except ChildDied as died:
                raise died.error or OperationError(died.reason, hint="the old engine still serves") from died
        return {"seconds": round(fresh.seconds, 3), "way": way}

    async def _leave(self, old: Engine | None) -> None:
        """End *old* with its last answer; nobody takes its place yet."""
        if old and old.child:
            self._agent.tell_gateway(ipc.EngineHold(model=old.model.name))
            self._retire(old)
            await self._gone(old)
        elif old:
            self._forget(old)

    async def _leased(self, wanted: Wanted) -> bool:
        """Have a lease on the key of a gated model, renewed from now on. False: there is none, and it *waits*.

        Raises:
            CasemateError: there is none, and it does not.

        """
        try:
            await self._agent.leases.obtain(wanted.gate)
        except CasemateError:
            if not wanted.waits:
                raise
            return False
        await self._agent.leases.ready(wanted.gate)
        return True

    async def _change(self, old: Engine | None, fresh: Engine) -> str:
        agent = self._agent
        if old and not old.child:  # it is down, or on its way: its place is taken as it is
            self._forget(old)
            old = None
        way = "beside"
        if old and not agent.launchers.beside:
            way = "in turn"
        else:
            try:
                await agent.start_engine(fresh)
            except ChildDied as died:
                if old is None or not died.transient:
                    raise
                way = "in turn"  # no room for two: better a pause than no update
        if way == "in turn" and old:
            await self._in_turn(old, fresh)
        elif old:
            self._retire(old)
        agent.adopt(fresh)
        return way

    async def _in_turn(self, old: Engine, fresh: Engine) -> None:
        agent = self._agent
        agent.tell_gateway(ipc.EngineHold(model=old.model.name))
        self._retire(old)
        await self._gone(old)
        try:
            await agent.start_engine(fresh)
        except ChildDied:
            again = dataclasses.replace(old, policy=RestartPolicy(), child=None, task=None, retired=False)
            agent.adopt(again)
            raise

    def _retire(self, old: Engine) -> None:
        """Let *old* end by itself; the gateway closes its link after its last answer."""
        old.retired = True
        self.retired = [engine for engine in (*self.retired, old) if engine.child]
        limit = float(self._agent.plan.settings["engine.deadline"]) + _DRAIN_GRACE
        asyncio.get_running_loop().call_later(limit, _end, old)

    def _forget(self, old: Engine) -> None:
        old.retired = True
        if old.task:
            old.task.cancel()
        _end(old)

    async def _gone(self, old: Engine) -> None:
        if old.task:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(old.task)

    async def _drop(self, name: str) -> dict[str, Any]:
        """Serve *name* no more: its engine ends with its last answer."""
        async with self._turn:
            old = self._agent.engines.pop(name, None)
            if old:
                self._agent.tell_gateway(ipc.EngineHold(model=name))
                self._retire(old)
                if old.child:
                    await self._gone(old)
                self._agent.tell_gateway(ipc.EngineDown(model=name, reason="removed by an update"))
        return {}

    def gateway_started(self) -> None:
        """Tell a new gateway what the old one knew; engines that were leaving end, nobody listens to them any more."""
        self._agent.tell_gateway(self.policy)
        for engine in self.retired:
            _end(engine)

    async def _take_policy(self, policy: ipc.TakePolicy) -> dict[str, Any]:
        await _measured(self._agent.measure_taken(policy))
        self.policy = policy
        self._agent.tell_gateway(policy)
        return {}

    # -- rehearsals

    async def _rehearse(self, wanted: Rehearsal) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        request = ipc.Rehearse(number, wanted.model, wanted.prompt, wanted.max_tokens, wanted.seconds)
        self._agent.tell_gateway(request)
        try:
            heard = await asyncio.wait_for(answer, wanted.seconds + _DRAIN_GRACE)
        except TimeoutError:
            raise OperationError("the gateway did not answer") from None
        finally:
            del self._asked[number]
        return {"text": heard.text, "error": heard.error, "first_token": heard.first_token}

    def rehearsed(self, message: ipc.Rehearsed) -> None:
        """Take the gateway's answer to a rehearsal."""
        waiting = self._asked.get(message.id)
        if waiting and not waiting.done():
            waiting.set_result(message)


def own_events(events: Any) -> list[dict[str, Any]]:
    """Return *events* when all are about updates: the update process speaks for nobody else.

    Raises:
        OperationError: one is not.

    """
    own = [event for event in events if str(event["metadata"]["event_code"]).startswith("update_")]
    if len(own) != len(events):
        raise OperationError("an update records what is about updates, and nothing else", hint="this is a bug")
    return own


async def _measured(measuring: Awaitable[None]) -> None:
    """Wait for *measuring*.

    Raises:
        CasemateError: the TPM did not.

    """
    try:
        await measuring
    except ChildDied as died:
        raise died.error or OperationError(died.reason, hint="what was before still serves") from died


def _end(engine: Engine) -> None:
    if engine.child:
        engine.child.kill()
