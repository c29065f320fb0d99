"""Small durable files of the keystores: read bounded, replace atomically, owned by whoever owns the directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from casemate.errors import NotFoundError, OperationError

_MEMORY_SEALS: Final = 1 | 2 | 4 | 8


def read_small(path: Path, limit: int, what: str) -> bytes:
    """Read a file of at most *limit* bytes.

    Raises:
        NotFoundError: it is not there.
        OperationError: it cannot be read, or is larger.

    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"no {what} at {path}", hint=f"put the {what} back, or restore a backup") from error
    except OSError as error:
        raise OperationError(
            f"cannot read the {what} {path}: {error.strerror}", hint="check its owner and its directory"
        ) from error
    if len(data) > limit:
        raise OperationError(f"the {what} {path} is larger than {limit} bytes", hint="this is not the right file")
    return data


def replace_small(path: Path, data: bytes, what: str) -> None:
    """Replace *path* durably with a file only its owner can read.

    Raises:
        OperationError: it cannot be written; the old file is untouched.

    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _remove_leftovers(path)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # says "alive" to `_remove_leftovers`
            directory = path.parent.stat()
            if os.geteuid() == 0:
                os.fchown(fd, directory.st_uid, directory.st_gid)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OperationError(
            f"cannot write the {what} {path}: {error.strerror}",
            hint="free space or make its directory writable, then try again; nothing was changed",
        ) from error


@contextlib.contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Be the only one who changes files in *path* for a moment; waits for others.

    Raises:
        OperationError: it cannot be opened.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OperationError(f"cannot open {path}: {error.strerror}", hint="check its owner") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of *path* whose writer was killed: they may hold a key."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        fd = os.open(leftover, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
        except BlockingIOError:
            pass  # somebody is writing it now
        finally:
            os.close(fd)


def sync_directory(path: Path) -> None:
    """Make a rename in *path* durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def memory_file(name: str, *parts: bytes | memoryview) -> int:
    """Return a sealed memory file that holds *parts* one after the other; the caller closes it.

    Raises:
        OperationError: there is no memory for it.

    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    for part in parts:
        if os.write(descriptor, part) != len(part):
            os.close(descriptor)
            raise OperationError(f"could not hand over the {name}")
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _MEMORY_SEALS)
    return descriptor
