"""The TPM's process, as the agent has it; on a device without a TPM, that there is none.

`device.attest` knows the talk with the attester and the fleet; here the process is started and kept.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from casemate.device.leases import REFUSED
from casemate.device.processes import Processes
from casemate.device.supervisor import RestartPolicy
from casemate.errors import NotFoundError, OperationError
from casemate.formats import ipc

if TYPE_CHECKING:  # a device without a TPM needs none of it
    from casemate.device.attest import Attestation, Fleet

_MOST_FLOORS: Final = 16
"""Raises in one life of the agent: NV memory wears, and who asks reads what comes from a network."""


class Chip:
    """One device's TPM."""

    def __init__(self, processes: Processes) -> None:
        """Start the attester among *processes*, where the settings name a TPM."""
        self._processes = processes
        self._attestation: Attestation | None = None
        self._floors_raised = 0

    async def begin(self) -> None:
        """Start the attester: what runs, and by which policies, is measured before it is used.

        Raises:
            ChildDied: it did not come up, or could not measure.

        """
        plan = self._processes.plan
        if not plan.settings["keystore.tpm"]:
            return
        from casemate.device.attest import Attestation  # noqa: PLC0415 - see the import of types above

        self._attestation = Attestation()
        self._processes.policies["attester"] = RestartPolicy()
        await self._start()
        self._processes.keep("attester", self._start)
        await self._attestation.measure_policies(plan.policies)
        await self.measure_generation(plan.generation)
        await self.measure_taken(plan.policy)

    async def _start(self) -> None:
        assert self._attestation
        tpm = self._processes.plan.settings["keystore.tpm"]
        self._attestation.started(await self._processes.start("attester", {"tpm": tpm}, {}))

    def heard(self, message: ipc.FromAttester) -> None:
        """Take what the attester says."""
        if self._attestation:
            self._attestation.heard(message)

    # -- measuring and proving

    async def measure_taken(self, policy: ipc.TakePolicy) -> None:
        """Measure what an update says about apps and the guard, before it is used.

        Raises:
            ChildDied: it could not be measured.

        """
        if self._attestation:
            await self._attestation.measure_taken(policy)

    async def measure_generation(self, content: str) -> None:
        """Measure which generation is served from now on, by its *content* digest (hex); empty: none.

        Raises:
            ChildDied: it could not be measured.

        """
        if self._attestation:
            await self._attestation.measure_generation(content)

    async def measure_model(self, name: str, digest: str) -> None:
        """Measure a model that the vault has proven.

        Raises:
            ChildDied: it could not be measured: it may not be served.

        """
        if self._attestation:
            await self._attestation.measure_model(name, digest)

    def show_evidence(self, fleet: Fleet) -> None:
        """Have *fleet* judge what runs here; without a TPM there is nothing to show."""
        if self._attestation:
            judging: Coroutine[Any, Any, None] = self._attestation.judge(fleet)
            self._processes.spawn(judging)

    @property
    def result(self) -> dict[str, Any]:
        """Return what the fleet's newest judgement came to, as `casemate status` shows it."""
        return self._attestation.result if self._attestation else {}

    async def come_back(self, message: ipc.AskChip) -> ipc.ChipSaid:
        """Return what the TPM says to a fleet that this device comes back to; that there is none, where none is."""
        if self._attestation is None:
            return ipc.ChipSaid(message.id, there=False)
        return await self._attestation.come_back(message)

    # -- keeping: a count of updates, and keys of gated models

    async def raise_floor(self, number: int) -> None:
        """Have the counter of updates raised to *number*.

        Raises:
            CasemateError: there is no TPM, or it did not.

        """
        attestation = self._there()
        self._floors_raised += 1
        if self._floors_raised > _MOST_FLOORS:
            raise OperationError("the counter was raised too often; it catches up at the next start")
        await attestation.raise_floor(number)

    async def ask_key(self, fleet: Fleet, model: str) -> tuple[int, str]:
        """Prove what runs here and ask *fleet* for *model*'s key; returns its status (0: no answer) and why not.

        Raises:
            CasemateError: the attester failed.

        """
        if self._attestation is None:
            return REFUSED, "this device has no TPM, so its fleet gives it no key (set keystore.tpm)"
        return await self._attestation.ask_key(fleet, model)

    async def use_key(self, model: str, into: int) -> float:
        """Have *model*'s key written into the descriptor *into*; returns the seconds its lease still has.

        Raises:
            CasemateError: there is no lease, it is over, or the attester failed.

        """
        return await self._there().use_key(model, into)

    async def drop_keys(self, *, forever: bool) -> None:
        """Have every lease forgotten; *forever*: and our counters taken out of the TPM.

        Raises:
            CasemateError: it was not.

        """
        if self._attestation:
            await self._attestation.drop_keys(forever=forever)

    def _there(self) -> Attestation:
        if self._attestation is None:
            raise NotFoundError("this device has no TPM", hint="set keystore.tpm")
        return self._attestation
