"""Saving a home as one file, also while its device runs.

The order is what makes it one moment. First the journal's head (checkpoint, tail, unfinished tiles) is read into memory
until the checkpoint is the same before and after: these three belong together. Everything else of the journal that the
head needs was there before it and never changes, so it may be copied afterwards. Containers are complete when they have
a name; one that is re-wrapped or removed while it is copied is noticed, and the backup is refused rather than torn.

Containers stay encrypted. Of the keystore only the recovery slot goes along, so that a stolen backup is worth nothing
without the recovery code; making that copy proves the keystore, so it asks for whatever opens it. Root reads each file
with the rights of whoever owns its directory: a link that a process planted there leads to nothing of root's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Final

from casemate import __version__, keystores
from casemate.clock import Clock, SystemClock
from casemate.device.home import SCHEMA, Home
from casemate.device.journal import LogFiles
from casemate.device.ownership import rights_of_owner
from casemate.device.record import record
from casemate.durable import sync_directory
from casemate.errors import BusyError, NotFoundError, OperationError
from casemate.formats import archive, event, tlog

ShowProgress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
_PIECE: Final = 1 << 20
_HEAD_TRIES: Final = 50
_HEAD_PAUSE: Final = 0.02
_CHECKPOINT: Final = "checkpoint"
_TAIL: Final = "tail"
_NOT_SAVED: Final = frozenset({"lock"})


@dataclasses.dataclass(frozen=True)
class Item:
    """One file to save: its bytes, or where it lies and how it looked when the list was made."""

    path: str
    size: int
    data: bytes | None = None
    place: Path | None = None
    looks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Saved:
    """A finished backup."""

    file: Path
    bytes: int
    sha256: str
    files: int
    models: tuple[str, ...]
    keys: str


def save(
    home: Home, target: Path, sources: keystores.Sources | None, *, progress: ShowProgress, clock: Clock | None = None
) -> Saved:
    """Save *home* as *target*; without *sources* no keys go along.

    Raises:
        NotFoundError: no home, or no recovery code to open the copy with.
        NotAuthorisedError: the keystore does not open.
        BusyError: *target* is there already, or a file changed while it was saved.
        OperationError: the disk is full or not readable; no part of *target* is left.

    """
    home.open()
    if target.exists():
        raise BusyError(f"{target} is there already", hint="name another file, or remove it first")
    clock = clock or SystemClock()
    keys = _recovery_keys(home, sources) if sources else []
    items = [*_list(home), *keys]
    if len(items) > archive.MEMBER_LIMIT:
        raise OperationError(
            f"the home has {len(items)} files; a backup holds {archive.MEMBER_LIMIT}",
            hint="most are of the journal: keep an old one elsewhere with `casemate journal export`",
        )
    header = archive.Header(
        schema=archive.SCHEMA,
        home=home.id,
        home_schema=SCHEMA,
        version=__version__,
        created=int(clock.wall()),
        keys="recovery" if keys else "none",
        files=len(items),
        bytes=sum(item.size for item in items),
    )
    digest, size = _write(target, header, items, progress)
    with contextlib.suppress(NotFoundError):  # without a keystore there is no journal
        record(home, event.backup_made(now=clock.wall()))
    models = tuple(sorted(Path(item.path).stem for item in items if item.path.startswith("models/")))
    return Saved(target, size, digest, len(items), models, header.keys)


def _recovery_keys(home: Home, sources: keystores.Sources) -> list[Item]:
    with keystores.unlock(home, sources) as keystore:
        try:
            data = keystores.recovery_only(keystore)
        except NotFoundError as error:
            raise NotFoundError(
                "there is no recovery code, so nobody could open the backup",
                hint=f"{error.hint}; or leave the keys out: --without-keys",
            ) from error
    return [Item("keystore/keystore.json", len(data), data=data)]


# --- what is saved ----------------------------------------------------------------------------------------------------


def _list(home: Home) -> list[Item]:
    """Decide what to save: the journal's head first, see the module's text."""
    head = journal_head(LogFiles(home.journal))
    items = [Item(f"journal/{name}", len(data), data=data) for name, data in head.items()]
    known = {item.path for item in items}
    tiles = _finished_tiles(_size_of(head.get(_CHECKPOINT)))
    for path in _walk(home):
        name = path.relative_to(home.path).as_posix()
        later = name.startswith("journal/tile/") and name not in tiles
        if name in known or later or not archive.is_home_path(name):
            continue
        with contextlib.suppress(FileNotFoundError):
            items.append(_look(path, name))
    return items


def _walk(home: Home) -> Iterator[Path]:
    yield home.path / "home.json"
    for part in (home.journal, home.apps, home.models):
        for folder, folders, names in os.walk(part, onerror=_raise):
            folders.sort()
            yield from (Path(folder, name) for name in sorted(names) if name not in _NOT_SAVED)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise OperationError(
            f"cannot read {error.filename}: {error.strerror}", hint="run it as root or as the user who owns the home"
        )


def _look(path: Path, name: str) -> Item:
    facts = path.lstat()
    return Item(name, facts.st_size, place=path, looks=_looks(facts))


def _looks(facts: os.stat_result) -> tuple[int, ...]:
    return (facts.st_mode, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def journal_head(files: LogFiles) -> dict[str, bytes]:
    """Read the files of the journal that change, at one moment: by name, none when there is no journal.

    Raises:
        BusyError: it is written so fast that no two reads agree.

    """
    for _ in range(_HEAD_TRIES):
        with rights_of_owner(files.directory):
            head = _read_head(files)
        if head is not None:
            return head
        time.sleep(_HEAD_PAUSE)
    raise BusyError("the journal is being written all the time", hint="try again, or stop the device first")


def _read_head(files: LogFiles) -> dict[str, bytes] | None:
    """Read checkpoint, tail and unfinished tiles; None when something was published meanwhile."""
    before = _read(files, _CHECKPOINT)
    head = {_TAIL: _read(files, _TAIL), _CHECKPOINT: before}
    for name in _unfinished_tiles(_size_of(before)):
        full = name.partition(".p/")[0]  # it takes the unfinished one's place before the next checkpoint
        head.update({name: data} if (data := _read(files, name)) is not None else {full: _read(files, full)})
    if _read(files, _CHECKPOINT) != before:
        return None
    return {name: data for name, data in head.items() if data is not None}


def _unfinished_tiles(size: int) -> list[str]:
    names = [tlog.tile_path(level, index, width) for level, index, width in tlog.partial_tiles(size)]
    index, width = divmod(size, tlog.TILE_WIDTH)
    return [*names, tlog.entries_path(index, width)] if width else names


def _read(files: LogFiles, name: str) -> bytes | None:
    try:
        return files.read(name)
    except FileNotFoundError:
        return None


def _size_of(checkpoint: bytes | None) -> int:
    """Return the tree size a checkpoint says (its second line); it is proved by whoever restores."""
    lines = (checkpoint or b"").split(b"\n", 2)
    return int(lines[1]) if len(lines) > 1 and lines[1].isdigit() and len(lines[1]) < 16 else 0  # noqa: PLR2004


def _finished_tiles(size: int) -> set[str]:
    """Return the full tiles and bundles of a log of *size*.

    Later ones may be on disk already and stay behind: a copy holds what its checkpoint and its tail cover.
    """
    level, count = 0, size // tlog.TILE_WIDTH
    names = {f"journal/{tlog.entries_path(index)}" for index in range(count)}
    while count:
        names.update(f"journal/{tlog.tile_path(level, index)}" for index in range(count))
        level, count = level + 1, count // tlog.TILE_WIDTH
    return names


# --- writing ----------------------------------------------------------------------------------------------------------


class _Writer:
    """Counts and hashes what goes into the file."""

    def __init__(self, file: BinaryIO, created: int) -> None:
        self._file = file
        self._created = created
        self.whole = hashlib.sha256()
        self.size = 0
        self.rows: list[archive.Row] = []

    def add(self, path: str, size: int, pieces: Iterator[bytes]) -> None:
        self._put(archive.member_block(path, size, self._created))
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            self._put(piece)
        self._put(bytes(archive.padding(size)))
        self.rows.append(archive.Row(path, size, digest.hexdigest()))

    def finish(self) -> None:
        manifest = archive.encode(archive.Manifest(archive.SCHEMA, tuple(self.rows)))
        self.add(archive.MANIFEST, len(manifest), iter([manifest]))
        self._put(archive.END)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self.whole.update(data)
        self.size += len(data)


def _write(target: Path, header: archive.Header, items: Sequence[Item], progress: ShowProgress) -> tuple[str, int]:
    """Write the archive beside *target* and give it its name when it is complete and durable."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb", buffering=_PIECE) as file, progress(header.bytes, "saving") as advance:
            writer = _Writer(file, header.created)
            first = archive.encode(header)
            writer.add(archive.HEADER, len(first), iter([first]))
            for item in items:
                writer.add(item.path, item.size, _pieces(item, advance))
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, target)  # not a rename: it must not replace what came meanwhile
        temporary.unlink()
        sync_directory(target.absolute().parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OperationError(
            f"cannot write {target}: {error.strerror}", hint="nothing was left behind; choose a place with room"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return writer.whole.hexdigest(), writer.size


def _pieces(item: Item, advance: Callable[[int], None]) -> Iterator[bytes]:
    if item.data is not None:
        advance(item.size)
        yield item.data
        return
    assert item.place
    left = item.size
    try:
        with rights_of_owner(item.place.parent):
            fd = os.open(item.place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _changed(item) from error
    with os.fdopen(fd, "rb", buffering=0) as file:
        while left and (piece := file.read(min(left, _PIECE))):
            left -= len(piece)
            advance(len(piece))
            yield piece
        if left or _looks(os.fstat(file.fileno())) != item.looks:
            raise _changed(item)


def _changed(item: Item) -> BusyError:
    return BusyError(f"{item.path} changed while it was saved", hint="nothing was left behind; run it again")


def describe(saved: Saved) -> dict[str, Any]:
    """Return *saved* as the command prints it."""
    return {**dataclasses.asdict(saved), "file": str(saved.file), "models": list(saved.models)}
