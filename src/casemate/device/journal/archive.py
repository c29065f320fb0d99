"""Putting logs elsewhere: a copy for others to check, or the whole log aside so that a new one can begin."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from casemate.clock import Clock, SystemClock
from casemate.device.home import Home
from casemate.device.journal import epochs, identity
from casemate.device.journal.files import LogFiles, write_error
from casemate.device.journal.offline import open_writer
from casemate.device.journal.recovery import CHECKPOINT
from casemate.device.journal.tree import read_full_or_partial
from casemate.device.journal.verify import verify
from casemate.device.ownership import rights_of_owner
from casemate.errors import NotFoundError, OperationError, UntrustedDataError
from casemate.formats import event, tlog
from casemate.formats.tlog.checkpoint import parse_text
from casemate.formats.tlog.note import split

if TYPE_CHECKING:
    import tarfile

_STAYS: Final = frozenset({identity.ARCHIVE, "lock"})


# --- a copy -----------------------------------------------------------------------------------------------------------


def write_tar(files: LogFiles, out: BinaryIO) -> int:
    """Write the published log (checkpoint, tiles, bundles, public key, sealed epoch keys) as a tar; return its size.

    Entries stay encrypted. Works while a device writes: what is copied is the newest checkpoint and its tiles.

    Raises:
        UntrustedDataError: the log is incomplete or its checkpoint does not verify.
        OperationError: *out* cannot be written.

    """
    import tarfile  # noqa: PLC0415 - the journal process loads this module and never exports

    signed = files.read(CHECKPOINT)
    size = tlog.open_checkpoint(signed, [identity.load_verifier(files)]).size
    try:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name in _published(files, size):
                _add(tar, name, read_full_or_partial(files, name))
            _add(tar, CHECKPOINT, signed)
    except OSError as error:
        raise OperationError(f"cannot write the export: {error.strerror}", hint="choose a disk with space") from error
    return size


def _published(files: LogFiles, size: int) -> Iterator[str]:
    """Yield the names that belong to a log of *size* entries."""
    yield identity.VKEY
    for name in files.names(epochs.FOLDER):
        if name.endswith(".json"):
            yield f"{epochs.FOLDER}/{name}"
    for index in range(size // tlog.TILE_WIDTH):
        yield tlog.entries_path(index)
    level, count = 0, size // tlog.TILE_WIDTH
    while count:
        yield from (tlog.tile_path(level, index) for index in range(count))
        level, count = level + 1, count // tlog.TILE_WIDTH
    for level, index, width in tlog.partial_tiles(size):
        yield tlog.tile_path(level, index, width)
        if level == 0:
            yield tlog.entries_path(index, width)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tar.tarinfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


# --- starting anew ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Archived:
    """Where the old log lies now, what was wrong with it, and what it claimed to be."""

    path: Path
    reason: str
    size: int
    origin: str


def archive(home: Home, clock: Clock | None = None) -> Archived:
    """Put the log of *home* aside, untouched, and begin a new one whose first event says so.

    The new log has its own key and name: a log that starts again must never sign under the old one's.

    Raises:
        BusyError: a device runs.
        NotFoundError: there is no log.
        OperationError: it cannot be moved.

    """
    files = LogFiles(home.journal)
    with rights_of_owner(home.journal), files.lock():
        if not set(files.names(".")) - _STAYS:
            raise NotFoundError("there is no journal to archive")
        reason = _fault(files)
        claimed = _claim(files)
        place = _set_aside(files)
    with open_writer(home, clock or SystemClock()) as writer:
        root = base64.b64encode(claimed.root).decode()
        now = (clock or SystemClock()).wall()
        writer.record([event.journal_archived(reason=reason, size=claimed.size, root=root, now=now)], role="journal")
        return Archived(place, reason, claimed.size, writer.origin)


def _fault(files: LogFiles) -> str:
    """Return the check the old log fails, or "requested" when it is sound."""
    try:
        verify(files)
    except UntrustedDataError as error:
        return error.check
    except NotFoundError:
        return "missing"
    return "requested"


def _claim(files: LogFiles) -> tlog.Checkpoint:
    """Return what the old checkpoint says, which may be a lie: it is kept as evidence, not believed."""
    try:
        return parse_text(split(files.read(CHECKPOINT))[0])
    except (FileNotFoundError, UntrustedDataError):
        return tlog.Checkpoint("", 0, tlog.EMPTY_ROOT)


def _set_aside(files: LogFiles) -> Path:
    number = len(files.names(identity.ARCHIVE)) + 1
    place = files.directory / identity.ARCHIVE / f"{number:04d}"
    try:
        files.make_folder(place)
        for name in files.names("."):
            if name not in _STAYS:
                (files.directory / name).rename(place / name)
    except OSError as error:
        raise write_error(place, error) from error
    return place
