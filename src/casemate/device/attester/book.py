"""The event log of this boot, in step with the PCRs that it explains.

A record is durable before its PCR is extended, and the PCR is extended before `measure` returns: what was used was
measured. A crash between the two is found and finished at the next start. PCRs that nobody measured into since power-on
are zero, and the log begins anew; anything else that does not fit means that somebody else extended our PCRs, or took
the log away. Then the log stays as it is, evidence does not hold, and only a restart of the machine mends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from casemate.device.home import write_atomic
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import evidence
from casemate.formats.evidence import OWN_PCRS, ZERO, Event, EventKind, Record, UntrustedEvidence

FILE: Final = "events.json"


class Chip(Protocol):
    """What the book needs of a TPM (`keystores.tss.Tpm` is one)."""

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a PCR."""
        ...

    def pcrs(self, indexes: frozenset[int]) -> dict[int, bytes]:
        """Read PCRs."""
        ...

    def quote(self, nonce: bytes, pcrs: frozenset[int]) -> tuple[bytes, bytes]:
        """Sign what PCRs hold."""
        ...


class Book:
    """One log and the TPM it belongs to. Give every call the open *chip*: it is nobody's for longer."""

    def __init__(self, directory: Path) -> None:
        """Keep the log in *directory*."""
        self._path = directory / FILE
        self.log: tuple[Record, ...] = ()
        self.broken = ""
        self._unsure = False
        """Whether the TPM failed when the log's last record was to be measured: it may have been or not."""

    def open(self, chip: Chip) -> None:
        """Find out where this boot stands."""
        held = chip.pcrs(OWN_PCRS)
        if all(value == ZERO for value in held.values()):
            self._write(())
            return
        self.log = self._read()
        if self._explains(held, self.log):
            return
        if self.log and self._explains(held, self.log[:-1]):
            self._extend(chip, self.log[-1])
            return
        self.broken = self.broken or "the event log does not explain what was measured since power-on"

    def measure(self, chip: Chip, events: Iterable[Event]) -> None:
        """Measure those of *events* that this boot has not seen yet; a generation unless it was the last of them.

        Raises:
            OperationError: the log is full or cannot be written, or the TPM failed: what was to be used may not be.

        """
        self._settle(chip)
        seen = {record.content for record in self.log}
        for event in events:
            record = evidence.record(len(self.log), event)
            if record.content in seen and (event.kind is not EventKind.GENERATION or event.digest == self._served()):
                continue
            if len(self.log) + 1 >= evidence.LOG_LIMIT:
                raise OperationError("the event log is full", hint="restart the machine")
            self._unsure = True
            self._write((*self.log, record))
            seen.add(record.content)
            self._extend(chip, record)
            self._unsure = False

    def answer(self, chip: Chip, nonce: bytes, pcrs: frozenset[int]) -> UntrustedEvidence:
        """Return the evidence for *nonce* over *pcrs*."""
        self._settle(chip)
        values = chip.pcrs(pcrs)
        attest, signature = chip.quote(nonce, pcrs)
        return UntrustedEvidence(1, nonce, attest, signature, values, self.log)

    def _settle(self, chip: Chip) -> None:
        """Find out, after a fault of the TPM, whether the last record was measured; if not, measure it."""
        if self._unsure:
            self.open(chip)
            self._unsure = False

    def _served(self) -> str:
        try:
            return evidence.served(evidence.replay(self.log)[0])
        except UntrustedDataError:  # a broken log proves nothing, whatever is added to it
            return ""

    def _explains(self, held: dict[int, bytes], log: tuple[Record, ...]) -> bool:
        try:
            return evidence.replay(log)[1] == held
        except UntrustedDataError as error:
            self.broken = error.message
            return False

    def _read(self) -> tuple[Record, ...]:
        try:
            return evidence.parse_log(self._path.read_bytes())
        except FileNotFoundError:
            self.broken = "the event log of this boot is gone"
        except UntrustedDataError as error:
            self.broken = error.message
        return ()

    def _write(self, log: tuple[Record, ...]) -> None:
        write_atomic(self._path, evidence.encode_log(log))
        self.log = log

    @staticmethod
    def _extend(chip: Chip, record: Record) -> None:
        chip.extend(record.pcr, bytes.fromhex(record.digests[0].digest))
