"""A generation's directory: written whole under a dot name, then renamed; from there on it never changes.

Order (each step durable before the next): files, their directories, the record, the rename. A cut anywhere leaves the
old generations and at most a dot name, which the next attempt or `gc` removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from casemate.device.home import Owner
from casemate.device.update.generation import RECORD, Generation
from casemate.durable import sync_directory, write_all
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats.manifest import File

Files = Mapping[str, Iterable[bytes]]
"""Pieces of every file of `Generation.tree`, by its path."""

_STEP: Final = 1 << 20
RECORD_LIMIT: Final = 16 << 20


def part_of(directory: Path) -> Path:
    """Return where the generation in *directory* is written before it has its name."""
    return directory.with_name(f".{directory.name}.part")


def write(directory: Path, generation: Generation, files: Files, record: bytes, owner: Owner | None) -> None:
    """Write a generation; *directory* appears when all of it is durable, and replaces one that was never committed.

    Raises:
        UntrustedDataError: `generation-files` not the files of the record, `generation-file` one has other content.
        OperationError: the disk is full or cannot be written; *directory* was not made.

    """
    tree, part = generation.tree, part_of(directory)
    if set(files) != set(tree):
        raise UntrustedDataError(
            "the files are not those that the generation's record names",
            check="generation-files",
            hint="fetch it again",
        )
    try:
        remove(part)
        _make_directories(part, tree, owner)
        for path in sorted(tree):
            _write_file(part / path, tree[path], files[path], owner)
        _write_whole(part / RECORD, (record,), owner)
        for folder in _folders(part, tree):
            sync_directory(folder)
        remove(directory)
        part.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise OperationError(
            f"cannot write the generation: {error.strerror}",
            hint="free space, then try again; what runs was not touched",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the next attempt removes it
            remove(part)


def remove(directory: Path) -> None:
    """Remove a directory that may not be there; its name is durably gone before anything in it is."""
    if not directory.name.startswith("."):
        hidden = directory.with_name(f".{directory.name}.gone")
        if not os.path.lexists(directory):
            return
        remove(hidden)
        directory.rename(hidden)
        sync_directory(directory.parent)
        directory = hidden
    if os.path.lexists(directory):
        shutil.rmtree(directory)


def verify(directory: Path, generation: Generation) -> None:
    """Prove that *directory* holds exactly what the record says.

    Raises:
        UntrustedDataError: `generation-files` or `generation-file`.

    """
    tree = generation.tree
    found = {path for path in _walk(directory) if path != RECORD}
    if found != set(tree):
        raise UntrustedDataError(
            f"generation {generation.number} does not hold the files of its record", check="generation-files"
        )
    for path, file in tree.items():
        digest, size = hashlib.sha256(), 0
        for piece in _read(directory / path):
            digest.update(piece)
            size += len(piece)
        if (size, digest.hexdigest()) != (file.size, file.sha256):
            raise _other_content(path)


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a plain file of at most *limit* bytes; a link is not followed.

    Raises:
        FileNotFoundError: it is not there.
        UntrustedDataError: `generation-file`: it is larger, or not a plain file.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UntrustedDataError(f"cannot read {path.name}: {error.strerror}", check="generation-file") from error
    with os.fdopen(fd, "rb") as file:
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UntrustedDataError(f"{path.name} is not a plain file", check="generation-file")
            raw = file.read(limit + 1)
        except OSError as error:
            raise UntrustedDataError(f"cannot read {path.name}: {error.strerror}", check="generation-file") from error
    if len(raw) > limit:
        raise UntrustedDataError(f"{path.name} is too large", check="generation-file")
    return raw


def _make_directories(part: Path, tree: Mapping[str, File], owner: Owner | None) -> None:
    for folder in _folders(part, tree):
        folder.mkdir(mode=0o755)
        if owner:
            os.chown(folder, owner.uid, owner.gid)


def _folders(part: Path, tree: Mapping[str, File]) -> list[Path]:
    """Return *part* and every directory below it, parents first."""
    below = {parent for path in tree for parent in (part / path).parents if parent.is_relative_to(part)}
    return sorted(below | {part})


def _write_file(path: Path, file: File, pieces: Iterable[bytes], owner: Owner | None) -> None:
    digest, size = hashlib.sha256(), 0

    def counted() -> Iterable[bytes]:
        nonlocal size
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            if size > file.size:
                raise _other_content(path.name)
            yield piece

    _write_whole(path, counted(), owner)
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise _other_content(path.name)


def _write_whole(path: Path, pieces: Iterable[bytes], owner: Owner | None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        if owner:
            os.fchown(fd, owner.uid, owner.gid)
        for piece in pieces:
            write_all(fd, piece)
        os.fsync(fd)
    finally:
        os.close(fd)


def _walk(directory: Path) -> Iterable[str]:
    """Yield every entry that is not a directory, by its path below *directory*."""
    for folder, folders, names in os.walk(directory, onerror=_raise):
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))]:  # noqa: PTH118, PTH114 - os.walk speaks text
            yield os.path.relpath(os.path.join(folder, name), directory)  # noqa: PTH118 - the same


def _raise(error: OSError) -> None:
    raise UntrustedDataError(f"cannot read the generation: {error.strerror}", check="generation-files") from error


def _read(path: Path) -> Iterable[bytes]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            while piece := os.read(fd, _STEP):
                yield piece
        finally:
            os.close(fd)
    except OSError as error:
        raise UntrustedDataError(f"cannot read {path.name}: {error.strerror}", check="generation-file") from error


def _other_content(path: str) -> UntrustedDataError:
    return UntrustedDataError(
        f"{path} does not have the content that the release names", check="generation-file", hint="fetch it again"
    )
