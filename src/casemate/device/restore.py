"""Bringing a saved home back: all of it, checked, or nothing.

    1  the header: a schema this version knows, room on the disk
    2  every file goes to a directory beside the new home, hashed as it is written
    3  the manifest at the end says the same paths, sizes and digests; nothing follows it
    4  the files get their owners, are synced, and the directory gets the home's name

A file is written before its digest is known to be right, never used: the new name comes last, and any fault removes the
directory. See `formats.archive` for what an archive may hold at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from casemate.clock import Clock, SystemClock
from casemate.device.home import PARTS, Home, Identity, require_known_schema
from casemate.device.ownership import hand_over
from casemate.device.record import record
from casemate.durable import sync_directory
from casemate.errors import BusyError, CasemateError, NotFoundError, OperationError
from casemate.formats import archive, event
from casemate.formats.archive import HEADER, MANIFEST, Header, Manifest, Row, refused

ShowProgress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
_PIECE: Final = 1 << 20
_SPARE: Final = 64 << 20
_IDENTITY: Final = "home.json"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A home that came back. *journal* says why the restoration could not be recorded, if so."""

    home: Path
    id: str
    created: int
    files: int
    bytes: int
    keys: str
    models: tuple[str, ...]
    journal: str = ""


def read_header(source: Path) -> Header:
    """Return what the archive at *source* says it is; nothing is proved yet.

    Raises:
        NotFoundError: there is no such file.
        UntrustedDataError: it is not a backup, or of another version.

    """
    with _open(source) as file:
        return _Reader(file).header()


def restore(
    source: Path, home: Home, *, progress: ShowProgress, expect: str = "", clock: Clock | None = None
) -> Restored:
    """Make *home* from the archive at *source*, whose whole SHA-256 must be *expect* when given.

    Raises:
        BusyError: something is at the home's place already.
        UntrustedDataError: the archive is damaged or forged; `check` says how.
        ConfigError: it is of a newer version.
        OperationError: the disk is full or not writable. Nothing is left behind in any of these cases.

    """
    if home.path.exists() and (not home.path.is_dir() or any(home.path.iterdir())):
        raise BusyError(f"{home.path} is there already", hint="restore to another place: --home DIR")
    with _open(source) as file:
        reader = _Reader(file)
        header = reader.header()
        require_known_schema(header.home_schema)
        place = home.path.absolute()
        staging = place.with_name(f".{place.name}.restoring.{secrets.token_hex(4)}")
        try:
            _make(staging, header)
            with progress(header.bytes, "restoring") as advance:
                models = reader.unpack(staging, advance)
            reader.finish(expect)
            _check_identity(staging, header)
            _publish(staging, place)
        except OSError as error:
            raise OperationError(
                f"cannot write {place}: {error.strerror}", hint="nothing was left behind; free space, or use --home"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    trouble = _record(home, clock or SystemClock())
    return Restored(home.path, header.home, header.created, header.files, header.bytes, header.keys, models, trouble)


@contextlib.contextmanager
def _open(source: Path) -> Iterator[BinaryIO]:
    try:
        with source.open("rb", buffering=0) as file:
            yield file
    except FileNotFoundError as error:
        raise NotFoundError(f"no backup at {source}", hint="check the path") from error
    except IsADirectoryError as error:
        raise NotFoundError(f"{source} is a directory", hint="name the backup's file") from error
    except PermissionError as error:
        raise OperationError(f"cannot read {source}: {error.strerror}", hint="run it with sudo") from error


class _Reader:
    """Walks an archive once, front to back, keeping a digest of the whole and a row per file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._whole = hashlib.sha256()
        self._header: Header | None = None
        self._rows: list[Row] = []
        self._manifest = b""

    def header(self) -> Header:
        """Read the first file."""
        if self._header is None:
            block = self._exactly(archive.BLOCK)
            member = archive.parse_block(block)
            if member is None or member.path != HEADER or member.size > archive.HEADER_LIMIT:
                raise refused("this is not a casemate backup", "archive-header")
            data = b"".join(self._content(member))
            self._header = archive.parse(data, Header)
            archive.parse_block(block, self._header.created)
        return self._header

    def unpack(self, top: Path, advance: Callable[[int], None]) -> tuple[str, ...]:
        """Write every file up to the manifest below *top*; return the names of the models."""
        header, seen, total = self.header(), set[str](), 0
        for _ in range(header.files):
            member = archive.parse_block(self._exactly(archive.BLOCK), header.created)
            if member is None or not archive.is_home_path(member.path):
                raise refused(f"a home holds no file {getattr(member, 'path', '(end)')!r}", "archive-path")
            total += member.size
            if member.path in seen or total > header.bytes:
                raise refused("the archive holds more than its header says", "archive-size")
            seen.add(member.path)
            _write(top / member.path, self._content(member), advance)
        if total != header.bytes:
            raise refused("the archive holds less than its header says", "archive-size")
        holds_keys = "keystore/keystore.json" in seen
        if _IDENTITY not in seen or holds_keys != (header.keys == "recovery"):
            raise refused("the archive does not hold what its header says", "archive-content")
        return tuple(sorted(Path(path).stem for path in seen if path.startswith("models/")))

    def finish(self, expect: str) -> None:
        """Compare everything read with the manifest, and the whole file with what the caller expects."""
        rows = tuple(self._rows)
        member = archive.parse_block(self._exactly(archive.BLOCK), self.header().created)
        if member is None or member.path != MANIFEST or member.size > archive.MANIFEST_LIMIT:
            raise refused("the manifest is missing", "archive-manifest")
        manifest = archive.parse(b"".join(self._content(member)), Manifest)
        for said, found in zip(manifest.files, rows, strict=False):
            if said != found:
                raise refused(f"{found.path} is not the file that was saved", "archive-digest")
        if len(manifest.files) != len(rows):
            raise refused("the manifest lists other files", "archive-manifest")
        if self._exactly(len(archive.END)) != archive.END or self._file.read(1):
            raise refused("something follows the end of the archive", "archive-end")
        if expect and self._whole.hexdigest() != expect.lower():
            raise refused("the file is not the one whose digest was given", "archive-expected")

    def _content(self, member: archive.Member) -> Iterator[bytes]:
        """Yield a member's bytes; afterwards its row is complete."""
        left, digest = member.size, hashlib.sha256()
        while left:
            piece = self._exactly(min(left, _PIECE))
            left -= len(piece)
            digest.update(piece)
            yield piece
        if any(self._exactly(archive.padding(member.size))):
            raise refused("the space between files is not empty", "archive-header")
        self._rows.append(Row(member.path, member.size, digest.hexdigest()))

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._file.read(size - len(data))
            if not piece:
                raise refused("the archive ends too early", "archive-short")
            data += piece
        self._whole.update(data)
        return bytes(data)


def _make(staging: Path, header: Header) -> None:
    """Make the directories; refuse early when the disk has no room."""
    free = shutil.disk_usage(staging.parent).free if staging.parent.exists() else None
    if free is not None and header.bytes + _SPARE > free:
        raise OperationError(
            f"the backup needs {header.bytes} bytes, {free} are free", hint="free space, or restore elsewhere: --home"
        )
    staging.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir(mode=0o700)
    for part in PARTS:
        (staging / part).mkdir(mode=0o700)


def _write(path: Path, pieces: Iterator[bytes], advance: Callable[[int], None]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o644 if path.name == _IDENTITY else 0o600), "wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
            advance(len(piece))


def _check_identity(staging: Path, header: Header) -> None:
    """Refuse when the home inside is not the one the header names."""
    try:
        identity = msgspec.json.decode((staging / _IDENTITY).read_bytes(), type=Identity)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refused(f"home.json does not parse: {error}", "archive-content") from error
    if (identity.id, identity.schema) != (header.home, header.home_schema):
        raise refused("home.json is of another home than the header says", "archive-content")


def _publish(staging: Path, place: Path) -> None:
    hand_over(Home(staging))
    staging.chmod(0o755 if os.geteuid() == 0 else 0o700)
    os.sync()
    staging.rename(place)  # onto nothing, or an empty directory
    sync_directory(place.parent)


def _record(home: Home, clock: Clock) -> str:
    """Journal the restoration; a log that does not let itself be continued is told, not hidden."""
    try:
        record(home, event.home_restored(now=clock.wall()))
    except NotFoundError:
        return "there is no keystore yet, so the journal has no owner to write for"
    except CasemateError as error:
        return error.message
    return ""
