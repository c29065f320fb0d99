"""The attester process: `python -m casemate.device.attester`, started by the agent.

The TPM is opened for one request at a time: a command of this device may need it in between. A gated model's key goes
down a descriptor to whoever the agent connected (the vault), and not back to the agent.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from casemate.clock import SystemClock
from casemate.device.attester import measure
from casemate.device.attester.book import Book
from casemate.device.attester.keys import KeyRing
from casemate.device.channel import ChannelClosed
from casemate.device.process import Child, boot
from casemate.device.update import counted
from casemate.errors import CasemateError, UntrustedDataError
from casemate.formats import evidence, fleet_api, ipc, lease
from casemate.formats.evidence import Event
from casemate.keystores import tss


class Attester:
    """The process's state: which TPM, and the log of this boot."""

    def __init__(self, tcti: str, book: Book, keys: KeyRing) -> None:
        """Serve the TPM at *tcti*."""
        self._tcti = tcti
        self._book = book
        self._keys = keys

    def begin(self) -> dict[str, Any]:
        """Open the log and measure what runs; returns what `casemate status` shows."""
        with tss.open_tpm(self._tcti) as chip:
            self._book.open(chip)
            self._book.measure(chip, (*measure.stack_events(), measure.guard_event()))
            software = chip.is_software
        return {"measured": len(self._book.log), "software_tpm": software, "broken": self._book.broken}

    def answer(self, request: ipc.ToAttester, fds: list[int]) -> ipc.FromAttester:
        """Carry out one request."""
        try:
            if isinstance(request, ipc.BeginKey):
                return ipc.KeyBegun(request.id, self._keys.begin(request.model))
            if isinstance(request, ipc.DropKeys):
                self._keys.drop()
                if request.forever:
                    with tss.open_tpm(self._tcti) as chip:
                        for counter in (tss.COUNTER, counted.COUNTER):
                            chip.undefine_counter(counter)
                return ipc.KeyHeld(request.id)
            with tss.open_tpm(self._tcti) as chip:
                if isinstance(request, ipc.RaiseFloor):
                    return ipc.FloorRaised(request.id, counted.reach(chip, request.number))
                if isinstance(request, ipc.Measure):
                    events = [_event(row) for row in request.events]
                    self._book.measure(chip, events)
                    return ipc.Measured(request.id, len(self._book.log))
                if isinstance(request, ipc.Quote):
                    wanted = frozenset(request.pcrs)
                    given = self._book.answer(chip, request.nonce, wanted)
                    return ipc.Quoted(request.id, evidence.encode(given))
                if isinstance(request, ipc.Introduce | ipc.ProveReturn):
                    return _come_back(chip, request)
                return self._key(chip, request, fds)
        except CasemateError as error:
            check = error.check if isinstance(error, UntrustedDataError) else ""
            return ipc.AttesterRefused(request.id, error.code, error.message, error.hint, check)

    def _key(self, chip: tss.Tpm, request: ipc.TakeKey | ipc.UseKey, fds: list[int]) -> ipc.FromAttester:
        if isinstance(request, ipc.TakeKey):
            sealed, grant = (request.identity, request.encrypted), (request.terms, request.wrapped)
            return ipc.KeyHeld(request.id, float(self._keys.take(chip, request.model, sealed, grant)))
        leased, left = self._keys.use(chip, request.model)
        with leased:
            os.write(fds[0], lease.hand(leased))
        return ipc.KeyHeld(request.id, left)


def _come_back(chip: tss.Tpm, request: ipc.Introduce | ipc.ProveReturn) -> ipc.FromAttester:
    """Say which TPM this is, or prove it. Its secret stays here: the link asks, and carries grants, too."""
    if isinstance(request, ipc.Introduce):
        maker, endorsement_key = chip.endorsement()
        return ipc.Introduced(request.id, maker, endorsement_key, chip.attestation_key())
    secret = chip.activate(request.identity, request.encrypted)
    return ipc.ReturnProven(request.id, fleet_api.return_proof(secret, request.csr))


def _event(row: dict[str, Any]) -> Event:
    """Read an event the agent sent.

    Raises:
        UntrustedDataError: `measure-event`.

    """
    try:
        return msgspec.convert(row, Event)
    except msgspec.ValidationError as error:
        raise UntrustedDataError(f"not an event: {error}", check="measure-event") from error


def serve(child: Child, attester: Attester) -> None:
    """Answer the agent until it closes the link."""
    while True:
        message, fds = child.control.recv()
        try:
            if isinstance(message, ipc.Ping):
                child.control.send(ipc.Pong(message.n))
            elif isinstance(message, ipc.ToAttester):
                child.control.send(attester.answer(message, fds))
        finally:
            for fd in fds:
                os.close(fd)


def main() -> None:
    """Open the log of this boot, then serve."""
    child = boot("attester")
    try:
        directory = child.home / "attester"
        attester = Attester(str(child.settings["tpm"]), Book(directory), KeyRing(directory, SystemClock()))
        child.ready(**attester.begin())
        serve(child, attester)
    except ChannelClosed:
        os._exit(0)
    except CasemateError as error:
        child.fatal(error)


if __name__ == "__main__":
    main()
