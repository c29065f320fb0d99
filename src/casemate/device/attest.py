"""The agent's side of attestation: what is measured when, and the talk between the attester and the fleet.

    start     attester measures what runs, agent has the policies measured        before the vault unlocks anything
    a model   loaded by the vault, measured                                       before the gateway may reach it
    asked     challenge from the fleet -> quote by the attester -> evidence back  the fleet judges, nobody here does

Evidence is shown to the fleet as it is; a fleet that cannot be reached changes nothing here, and what it affirmed ends
by itself.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from casemate.device.attester import measure
from casemate.device.channel import ChannelClosed
from casemate.device.children import ChildDied, ChildProcess, rebuild
from casemate.errors import CasemateError, OperationError
from casemate.formats import fleet_api, ipc
from casemate.formats.evidence import Event, EventKind

WITHIN: Final = 30.0
"""Seconds a TPM may take: a discrete one is slow, and a command may be using it."""
_OK: Final = 200


class Fleet(Protocol):
    """What is asked of whoever speaks to the fleet (`device.respond.Respondent`)."""

    async def post(self, path: str, body: bytes, deadline: float = 30.0) -> ipc.Posted:
        """Post *body*; status 0 when nobody answered."""
        ...


class Attestation:
    """One device's attester, as the agent uses it."""

    def __init__(self) -> None:
        """Know nothing yet: `started` brings the process."""
        self._child: ChildProcess | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[ipc.FromAttester]] = {}
        self._turn = asyncio.Lock()
        self._returning = False
        self.result: dict[str, Any] = {}

    def started(self, child: ChildProcess) -> None:
        """Use *child* from now on; who waits for the one before gets no answer."""
        self._child = child
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(OperationError("the attester ended before it answered"))

    def heard(self, message: ipc.FromAttester) -> None:
        """Take an answer of the attester."""
        future = self._waiting.get(message.id)
        if future and not future.done():
            future.set_result(message)

    async def measure_policies(self, policies: Mapping[str, str]) -> None:
        """Measure the policy of each app (SHA-256 of its file, in hex).

        Raises:
            ChildDied: it could not be measured: it may not be used.

        """
        await self._measure([Event(EventKind.POLICY, app, "", digest) for app, digest in sorted(policies.items())])

    async def measure_generation(self, content: str) -> None:
        """Measure which generation is served, by its *content* digest (hex); empty: none.

        Raises:
            ChildDied: it could not be measured: it may not be used.

        """
        await self._measure([Event(EventKind.GENERATION, "generation", "", content)] if content else [])

    async def measure_taken(self, policy: ipc.TakePolicy) -> None:
        """Measure what a generation says about apps and the guard.

        Raises:
            ChildDied: it could not be measured: it may not be used.

        """
        await self._measure(measure.taken_events(policy.apps, policy.guard))

    async def measure_model(self, name: str, digest: str) -> None:
        """Measure a model that the vault has proven.

        Raises:
            ChildDied: it could not be measured: it may not be served.

        """
        await self._measure([measure.model_event(name, digest)])

    # -- keys of gated models (`device.leases` decides, the attester keeps them)

    async def ask_key(self, fleet: Fleet, model: str) -> tuple[int, str]:
        """Prove what runs here, then ask for *model*'s key and have the attester keep it for its lease.

        Returns the fleet's status and, when it is not 200, why not in words; status 0: nobody answered.

        Raises:
            OperationError: the attester refused, ended or was too slow.

        """
        await self.judge(fleet, wait=True)
        begun = await self._ask(ipc.BeginKey(self._next(), model))
        assert isinstance(begun, ipc.KeyBegun)
        question = fleet_api.encode(fleet_api.KeyQuestion(begun.nonce))
        answer = await fleet.post(f"keys/{model}/release", question)
        if answer.status != _OK:
            return answer.status, fleet_api.problem(answer.body) if answer.status else "the fleet was not reached"
        given = fleet_api.parse(answer.body, fleet_api.KeyAnswer)
        await self._ask(ipc.TakeKey(self._next(), model, given.identity, given.encrypted, given.terms, given.wrapped))
        return answer.status, ""

    async def use_key(self, model: str, into: int) -> float:
        """Have the attester write *model*'s key into the descriptor *into*; returns the seconds its lease still has.

        Raises:
            PolicyDeniedError: the lease is over.
            NotFoundError: there is none.
            OperationError: the attester ended or was too slow.

        """
        held = await self._ask(ipc.UseKey(self._next(), model), (into,))
        assert isinstance(held, ipc.KeyHeld)
        return held.seconds

    async def drop_keys(self, *, forever: bool = False) -> None:
        """Have the attester forget every lease; *forever*: and take our counters out of the TPM, for a wipe.

        Raises:
            CasemateError: it did not say that it did.

        """
        await self._ask(ipc.DropKeys(self._next(), forever))

    async def come_back(self, message: ipc.AskChip) -> ipc.ChipSaid:
        """Return what the TPM says to a fleet that this device comes back to: to one question at a time.

        The link asks, which reads what comes from a network: a hundred questions at once would keep a TPM from leases.
        """
        if self._returning:
            return ipc.ChipSaid(message.id, why="the TPM is answering already")
        self._returning = True
        try:
            return await self._come_back(message)
        finally:
            self._returning = False

    async def _come_back(self, message: ipc.AskChip) -> ipc.ChipSaid:
        try:
            if message.identity:
                asked = ipc.ProveReturn(self._next(), message.identity, message.encrypted, message.csr)
                proven = await self._ask(asked)
                assert isinstance(proven, ipc.ReturnProven)
                return ipc.ChipSaid(message.id, proof=proven.proof)
            found = await self._ask(ipc.Introduce(self._next()))
            assert isinstance(found, ipc.Introduced)
        except CasemateError as error:
            return ipc.ChipSaid(message.id, why=error.message)
        return ipc.ChipSaid(
            message.id,
            certificate=found.certificate,
            endorsement_key=found.endorsement_key,
            attestation_key=found.attestation_key,
        )

    async def raise_floor(self, number: int) -> None:
        """Have the counter of updates raised to *number*.

        Raises:
            CasemateError: it was not.

        """
        await self._ask(ipc.RaiseFloor(self._next(), number))

    async def judge(self, fleet: Fleet, *, wait: bool = False) -> None:
        """Answer a challenge of the fleet and keep what it came to; one at a time, and not again unless *wait*."""
        if self._turn.locked() and not wait:
            return
        async with self._turn:
            try:
                self.result = await self._judge(fleet)
            except CasemateError as error:
                self.result = {**self.result, "attestation": f"failed: {error.message}"}

    async def _judge(self, fleet: Fleet) -> dict[str, Any]:
        asked = await fleet.post("attest/challenge", b"{}")
        if asked.status != _OK:
            raise OperationError(f"the fleet gave no challenge ({asked.status})")
        challenge = fleet_api.parse(asked.body, fleet_api.Challenge)
        quoted = await self._ask(ipc.Quote(self._next(), challenge.nonce, challenge.pcrs))
        if not isinstance(quoted, ipc.Quoted):
            raise OperationError("the attester did not quote")
        shown = await fleet.post("attest/evidence", quoted.evidence)
        if shown.status != _OK:
            raise OperationError(f"the fleet took no evidence ({shown.status})")
        answer = fleet_api.parse(shown.body, fleet_api.AttestAnswer)
        return {
            "attestation": answer.status,
            "attested_assurance": answer.assurance,
            "attested_until": int(answer.expires),
            "attestation_reasons": list(answer.reasons),
        }

    async def _measure(self, events: list[Event]) -> None:
        if not events:
            return
        rows = tuple(msgspec.to_builtins(event) for event in events)
        try:
            await self._ask(ipc.Measure(self._next(), rows))
        except CasemateError as error:
            raise ChildDied(f"not measured: {error.message}", error=error) from error

    def _next(self) -> int:
        return next(self._numbers)

    async def _ask(self, request: ipc.ToAttester, fds: Sequence[int] = ()) -> ipc.FromAttester:
        """Return the attester's answer.

        Raises:
            CasemateError: it refused, ended or was too slow.

        """
        if self._child is None:
            raise OperationError("the attester does not run")
        answer = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        try:
            await self._child.link.send(request, fds)
            found: ipc.FromAttester = await asyncio.wait_for(answer, WITHIN)
        except (ChannelClosed, TimeoutError) as error:
            raise OperationError("the attester did not answer") from error
        finally:
            del self._waiting[request.id]
        if isinstance(found, ipc.AttesterRefused):
            raise rebuild(found)
        return found
