"""Small durable files of the keystores: read bounded, replace atomically, owned by whoever owns the directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from casemate import durable
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
    try:
        directory = path.parent.stat()
        durable.replace(path, data, owner=(directory.st_uid, directory.st_gid) if os.geteuid() == 0 else None)
    except OSError as error:
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
