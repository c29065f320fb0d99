"""The update process's one link to its device: the vault's verbs, the journal, and a running device's engines.

The other end is the agent of a running device, or a workshop (`device.workshop`) when none runs. Both speak the same;
only a running device has models to serve and prompts to rehearse.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from casemate.device import admin
from casemate.device.channel import Channel, ChannelClosed
from casemate.device.children import rebuild
from casemate.device.fleet import direction
from casemate.device.fleet.direction import Direction
from casemate.errors import CasemateError, OperationError, UntrustedDataError
from casemate.formats import ipc, manifest
from casemate.formats.event import Event
from casemate.formats.manifest import SealedPart

VAULT_SECONDS: Final = 6 * 3600.0
SWITCH_SECONDS: Final = 900.0
_SECONDS: Final = 30.0
_TPM_SECONDS: Final = 90.0
"""For what a TPM has to do first: longer than the agent waits for one, so that its answer is never left behind."""
_LEASE_SECONDS: Final = 240.0
"""For contact with the fleet, a judgement and its answer: longer than the agent waits for all three."""
_T = TypeVar("_T", bound=ipc.Message)


class Port:
    """Asks one question at a time."""

    def __init__(self, link: socket.socket, *, running: bool) -> None:
        """Ask over *link*; *running*: a device is at its other end."""
        self.running = running
        self._channel = Channel(link, ipc.FromAgent)
        self._numbers = itertools.count(1)

    # -- the vault

    def open_release(self, raw: bytes, grant: bytes, sealed: bytes, gate: str = "") -> SealedPart:
        """Return the sealed part of the release whose verified manifest is *raw*; *gate* as the fleet calls it.

        Raises:
            UntrustedDataError: it is not the manifest's, or not well-formed.
            NotAuthorisedError: the grant is for another device.
            PolicyDeniedError: it is gated, and the fleet gives this device no key, or one for less than it asks.
            HostError: it is gated, and no device runs.

        """
        request = ipc.OpenRelease(next(self._numbers), raw, grant, sealed, gate)
        return msgspec.json.decode(self._vault(request, (), ipc.ReleaseOpened).part, type=manifest.SealedPart)

    def open_payload(self, raw: bytes, grant: bytes, payload: str, source: int, target: int) -> int:
        """Decrypt *payload* from the descriptor *source* to *target*; returns bytes. Never for a model.

        Raises:
            UntrustedDataError: `payload-...`: it is not what was sealed.
            OperationError: the disk is full.

        """
        request = ipc.OpenPayload(next(self._numbers), raw, grant, payload)
        return self._vault(request, (source, target), ipc.PayloadOpened).bytes

    def transcode(self, request: ipc.Transcode, source: int) -> ipc.Transcoded:
        """Make a container of the sealed payload in the descriptor *source*; `request.id` does not count.

        Raises:
            UntrustedDataError: `delta-...`, `payload-...`, `release-digest`, `gguf-...`: nothing was left behind.
            OperationError: the disk is full.

        """
        return self._vault(msgspec.structs.replace(request, id=next(self._numbers)), (source,), ipc.Transcoded)

    def containers(self) -> tuple[str, ...]:
        """Return the names of the model containers that are there."""
        return self._vault(ipc.ListContainers(next(self._numbers)), (), ipc.Containers).names

    def remove_container(self, name: str) -> None:
        """Remove a generation's container."""
        self._vault(ipc.RemoveContainer(next(self._numbers), name), (), ipc.Containers)

    def _vault(self, request: ipc.ToVault, fds: Sequence[int], wanted: type[_T]) -> _T:
        reply = self._ask(request, fds, VAULT_SECONDS)
        if isinstance(reply, ipc.ReleaseRefused):
            raise rebuild(reply)
        if not isinstance(reply, wanted) or getattr(reply, "id", None) != request.id:
            raise OperationError("the vault answered another question", hint="this is a bug")
        return reply

    # -- the device

    def record(self, *events: Event) -> None:
        """Make *events* durable in the journal before returning."""
        self._tell("record", {"events": list(events)}, _SECONDS)

    def status(self) -> dict[str, Any]:
        """Return what `casemate status` shows of the running device."""
        return self._tell("status", {}, _SECONDS)

    def direction(self) -> Direction:
        """Return what the fleet's director says to this device."""
        return direction.decode(self._tell("direction", {}, _SECONDS))

    def stands(self, facts: Mapping[str, Any]) -> None:
        """Say where the update stands, for the fleet."""
        self._tell("stands", dict(facts), _SECONDS)

    def serve(self, name: str, container: str, gate: str = "", *, waits: bool = False) -> dict[str, Any]:
        """Have the model *name* served from *container*; returns once it is.

        *gate*: what the fleet calls a gated model. Without a lease it is refused, or (*waits*) stands stopped until
        the fleet grants one.

        Raises:
            CasemateError: it did not come up: what served before serves.

        """
        wanted = {"name": name, "container": container, "gate": gate, "waits": waits}
        return self._tell("serve", {"model": wanted}, SWITCH_SECONDS)

    def lease(self, gate: str) -> None:
        """Have a lease on the key of what the fleet calls *gate*, asking the fleet unless one runs.

        Raises:
            PolicyDeniedError: the fleet gives this device no key.
            OperationError: it was not reached, or the TPM failed.

        """
        self._tell("lease", {"gate": gate}, _LEASE_SECONDS)

    def drop(self, name: str) -> None:
        """Have the model *name* served no more."""
        self._tell("drop", {"name": name}, SWITCH_SECONDS)

    def measure_generation(self, content: str) -> None:
        """Have a TPM, where there is one, measure that the generation with this *content* digest is served from now on.

        Raises:
            CasemateError: it was not measured, so it may not be served.

        """
        self._tell("generation", {"content": content}, _TPM_SECONDS)

    def take_policy(self, apps: Mapping[str, str], guard: bytes) -> None:
        """Have the gateway serve under these policies (text by app) and guard data; empty ones take them back."""
        self._tell("policy", {"apps": dict(apps), "guard": base64.b64encode(guard).decode()}, _TPM_SECONDS)

    def count_commit(self, number: int) -> None:
        """Have the TPM's counter raised to *number*; a device that does not run, or cannot, does it when it starts."""
        with contextlib.suppress(CasemateError):
            self._tell("floor", {"number": number}, _TPM_SECONDS)

    def rehearse(self, model: str, prompt: str, *, max_tokens: int, seconds: float) -> dict[str, Any]:
        """Ask *model* one prompt as an app would; returns `text`, `error` and `first_token` (seconds)."""
        args = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "seconds": seconds}
        return self._tell("rehearse", args, seconds + _SECONDS)

    def _tell(self, verb: str, args: dict[str, Any], within: float) -> dict[str, Any]:
        return admin.ask_over(self._channel, verb, args, within)

    def _ask(self, message: ipc.ToVault, fds: Sequence[int], within: float) -> Any:
        try:
            self._channel.send(message, fds)
            reply: Any = self._channel.recv(within)[0]
        except (ChannelClosed, TimeoutError, UntrustedDataError) as error:
            self._channel.give_up()
            raise admin.NoAnswerError("the device went away", hint="run the same command again: it goes on") from error
        if isinstance(reply, ipc.Answer):
            raise admin.rebuilt(reply.data)
        return reply
