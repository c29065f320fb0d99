"""The journal: what happened on this device, encrypted, append-only, provable.

`JournalWriter` is the one writer (the journal process, or a command while no device runs); `verify` needs no key;
`Reader` needs the owner's. See docs/reference/journal.md for the bytes on disk.
"""

from casemate.device.journal.archive import Archived, archive, write_tar
from casemate.device.journal.files import LogFiles
from casemate.device.journal.identity import load_verifier
from casemate.device.journal.offline import append_offline, open_writer
from casemate.device.journal.reader import Reader, Shown, prove
from casemate.device.journal.verify import Verified, verify
from casemate.device.journal.witnessing import WITNESSED
from casemate.device.journal.writer import JournalWriter

__all__ = [
    "WITNESSED",
    "Archived",
    "JournalWriter",
    "LogFiles",
    "Reader",
    "Shown",
    "Verified",
    "append_offline",
    "archive",
    "load_verifier",
    "open_writer",
    "prove",
    "verify",
    "write_tar",
]
