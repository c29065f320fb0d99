"""One payload's file: sealed chunks, one after another, each proven by its digest before it counts.

The file has its full size from the start, so the disk cannot fill up in the middle, and it is its own map: a chunk is
there when the bytes at its place have its digest. Every chunk is durable before the next is asked for, so a kill or a
power cut costs one chunk, 1 MiB. Nothing here holds a key; what is fetched stays sealed until the vault opens it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from casemate.device.update.pacer import Pacer
from casemate.device.update.source import Source, ignore
from casemate.durable import sync_directory
from casemate.errors import NotFoundError, OperationError, UntrustedDataError
from casemate.formats.manifest import ChunkRef, Manifest, Payload

LOOK_BYTES: Final = 8 << 20
LOOK_SECONDS: Final = 60.0
_MARGIN: Final = 4 << 20  # for what else is written meanwhile: state, journal, a container's slots
_CORRUPT_TRIES: Final = 2
_BLAMED: Final = {"chunk-digest", "chunk-size", "transfer-size"}


class Progress(msgspec.Struct, frozen=True):
    """How far a payload is, in bytes. *saved*: what the full payload would have cost more."""

    done: int
    total: int
    saved: int


class Fetched(msgspec.Struct, frozen=True):
    """A payload on disk: `path` is what the vault's `Transcode` and `OpenPayload` read. Bytes as in `Progress`."""

    payload: Payload
    path: Path
    bytes: int
    saved: int


Tell = Callable[[Progress], None]


def quiet(_progress: Progress) -> None:
    """Tell nobody."""


class Watch:
    """Looks every few MiB, and at least once a minute, whether to go on. *look* raises to stop."""

    def __init__(
        self,
        look: Callable[[], None],
        *,
        every: int = LOOK_BYTES,
        seconds: float = LOOK_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to count now; `look` was asked a moment ago."""
        self._look = look
        self._every = every
        self._seconds = seconds
        self._monotonic = monotonic
        self._bytes = 0
        self._at = monotonic()

    def before(self, size: int) -> None:
        """Look, when it is time, before *size* more bytes are fetched."""
        self._bytes += size
        if self._bytes > self._every or self._monotonic() - self._at > self._seconds:
            self._look()
            self._bytes, self._at = size, self._monotonic()


@dataclasses.dataclass(frozen=True)
class Terms:
    """How to fetch. *room*: bytes that will be needed next, by directory: asked for now, before the first byte."""

    pacer: Pacer | None = None
    watch: Watch | None = None
    room: Mapping[Path, int] = dataclasses.field(default_factory=dict)
    tell: Tell = quiet


def require_space(needs: Mapping[Path, int]) -> None:
    """Check that there is room for *needs*, bytes by directory; directories on one disk are added up.

    Raises:
        OperationError: there is not.

    """
    by_disk: dict[int, tuple[Path, int]] = {}
    for directory, size in needs.items():
        disk = directory.stat().st_dev
        first, known = by_disk.get(disk, (directory, 0))
        by_disk[disk] = (first, known + size)
    for directory, size in by_disk.values():
        room = os.statvfs(directory)
        free = room.f_bavail * room.f_frsize
        if size + _MARGIN > free:
            raise OperationError(
                f"the update needs {(size + _MARGIN) >> 20} MiB in {directory} and {free >> 20} MiB are free",
                hint="free space, or set CASEMATE_HOME to a larger disk; nothing was fetched",
            )


class Assembly:
    """One payload on its way into a file of *directory*."""

    def __init__(self, source: Source, manifest: Manifest, payload: Payload, directory: Path, terms: Terms) -> None:
        """Fetch *payload* of *manifest* from *source*; `run` does it."""
        self._source = source
        self._payload = payload
        self._path = path_of(directory, payload.id)
        self._terms = terms
        self._total = payload.transfer_bytes
        self._saved = manifest.full.transfer_bytes - self._total
        self._done = 0
        self.payload_failed = False

    def run(self) -> Fetched:
        """Fetch what is not there yet. `payload_failed` says afterwards whether the payload itself was at fault.

        Raises:
            UntrustedDataError: `chunk-digest`, `chunk-size`, `transfer-size`: the source lies.
            NotFoundError: the source lacks a chunk.
            NotNowError: the owner's limits.
            OperationError: too little space; the source cannot be reached.

        """
        fresh = not self._path.exists()
        try:
            self._require_space()
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._allocate(fd)
                missing = list(self._missing(fd, fresh=fresh))
                for offset, chunk in missing:
                    self._fetch(fd, offset, chunk)
            finally:
                os.close(fd)
        except OSError as error:
            if fresh and not self._done:
                self._path.unlink(missing_ok=True)
            raise OperationError(
                f"cannot write {self._path}: {error.strerror}", hint="free space, then try again: it goes on from there"
            ) from error
        return Fetched(self._payload, self._path, self._total, self._saved)

    def _require_space(self) -> None:
        here = self._path.stat().st_blocks * 512 if self._path.exists() else 0
        needs = dict(self._terms.room)
        needs[self._path.parent] = needs.get(self._path.parent, 0) + max(0, self._total - here)
        require_space(needs)

    def _allocate(self, fd: int) -> None:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise OperationError(f"{self._path} is not a plain file", hint="remove it")
        if facts.st_size != self._total:
            os.ftruncate(fd, self._total)
        os.posix_fallocate(fd, 0, self._total)
        os.fsync(fd)
        sync_directory(self._path.parent)

    def _missing(self, fd: int, *, fresh: bool) -> list[tuple[int, ChunkRef]]:
        """Return the chunks that are not there, with their place in the file."""
        missing, offset = [], 0
        for chunk in self._payload.chunks:
            if not fresh and _digest(os.pread(fd, chunk.size, offset)) == chunk.sha256:
                self._done += chunk.size
            else:
                missing.append((offset, chunk))
            offset += chunk.size
        self._report()
        return missing

    def _fetch(self, fd: int, offset: int, chunk: ChunkRef) -> None:
        if self._terms.watch:
            self._terms.watch.before(chunk.size)
        view = memoryview(self._get(chunk))
        while view.nbytes:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written
        os.fdatasync(fd)
        self._done += chunk.size
        self._report()

    def _get(self, chunk: ChunkRef) -> bytes:
        """Fetch a chunk; one that was damaged on the way is asked for once more."""
        pacer = None if self._source.offline else self._terms.pacer
        for attempt in range(1, _CORRUPT_TRIES + 1):
            if pacer:
                pacer.ask(chunk.size)
            try:
                data = self._source.get(chunk.path, chunk.size, pacer.taken if pacer else ignore)
                return checked(data, chunk.sha256, chunk.size)
            except NotFoundError:
                self.payload_failed = True
                raise
            except UntrustedDataError as error:
                if attempt == _CORRUPT_TRIES or error.check not in _BLAMED or self._source.offline:
                    self.payload_failed = error.check in _BLAMED
                    raise
        raise AssertionError("the last try returns or raises")

    def _report(self) -> None:
        self._terms.tell(Progress(self._done, self._total, self._saved))


def path_of(directory: Path, payload: str) -> Path:
    """Return the file of a payload (its id)."""
    return directory / f"{payload}.sealed"


def checked(data: bytes, sha256: str, size: int) -> bytes:
    """Return *data* when it is what its manifest names.

    Raises:
        UntrustedDataError: `chunk-size`, `chunk-digest`.

    """
    if len(data) != size:
        raise UntrustedDataError("a chunk is shorter than its manifest says", check="chunk-size", hint=_HINT)
    if _digest(data) != sha256:
        raise UntrustedDataError("a chunk is not the one its manifest names", check="chunk-digest", hint=_HINT)
    return data


_HINT: Final = "it was changed on the server or on the way; what was good is kept"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
