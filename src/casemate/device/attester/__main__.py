"""The attester process: `python -m casemate.device.attester`, started by the agent.

The TPM is opened for one request at a time: a command of this device may need it in between. What a credential holds
goes down a descriptor to whoever the agent connected (the vault), and not back to the agent.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from casemate.device.attester import measure
from casemate.device.attester.book import Book
from casemate.device.channel import ChannelClosed
from casemate.device.process import Child, boot
from casemate.errors import CasemateError, UntrustedDataError
from casemate.formats import evidence, ipc
from casemate.formats.evidence import Event
from casemate.keystores import tss


class Attester:
    """The process's state: which TPM, and the log of this boot."""

    def __init__(self, tcti: str, book: Book) -> None:
        """Serve the TPM at *tcti*."""
        self._tcti = tcti
        self._book = book

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
            with tss.open_tpm(self._tcti) as chip:
                if isinstance(request, ipc.Measure):
                    events = [_event(row) for row in request.events]
                    self._book.measure(chip, events)
                    return ipc.Measured(request.id, len(self._book.log))
                if isinstance(request, ipc.Quote):
                    wanted = frozenset(request.pcrs)
                    given = self._book.answer(chip, request.nonce, wanted)
                    return ipc.Quoted(request.id, evidence.encode(given))
                secret = chip.activate(request.identity, request.encrypted)
                os.write(fds[0], secret)
                return ipc.Opened(request.id)
        except CasemateError as error:
            return ipc.AttesterRefused(request.id, error.code, error.message, error.hint)


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
        attester = Attester(str(child.settings["tpm"]), Book(directory))
        child.ready(**attester.begin())
        serve(child, attester)
    except ChannelClosed:
        os._exit(0)
    except CasemateError as error:
        child.fatal(error)


if __name__ == "__main__":
    main()
