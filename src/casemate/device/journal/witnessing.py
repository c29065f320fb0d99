"""The journal's part of being witnessed: a proof for the fleet, and its cosigned checkpoint kept beside the log.

What the witness saw is a checkpoint "kept elsewhere": `journal verify` compares the log with it, so a log that was cut
back on this device is caught on this device, too.
"""

from __future__ import annotations

from typing import Final

from casemate.device.journal.recovery import CHECKPOINT
from casemate.device.journal.tree import TileTree
from casemate.device.journal.writer import JournalWriter
from casemate.errors import CasemateError
from casemate.formats import ipc, tlog

WITNESSED: Final = "checkpoint.witnessed"


def prove(writer: JournalWriter, asked: ipc.ProveLog) -> ipc.LogProven:
    """Return the request for the newest checkpoint; a witness that remembers more than we have gets no proof."""
    vkey = str(writer.identity.verifier)
    if writer.checkpoint is None:
        return ipc.LogProven(id=asked.id, size=0, vkey=vkey)
    size = writer.checkpoint.size
    try:
        proof = TileTree(writer.files, size).consistency(asked.old) if asked.old <= size else []
        request = tlog.AddCheckpoint(asked.old, tuple(proof), writer.files.read(CHECKPOINT)).encode()
    except (CasemateError, FileNotFoundError):
        return ipc.LogProven(id=asked.id, size=0, vkey=vkey)
    return ipc.LogProven(id=asked.id, size=size, vkey=vkey, request=request)


def keep(writer: JournalWriter, note: bytes) -> None:
    """Keep the cosigned *note*; a disk that is full loses it, not the log."""
    try:
        writer.files.write(WITNESSED, note, sync=True)
    except CasemateError:
        pass
