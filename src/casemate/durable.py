"""Small files that survive a power cut: a reader sees the old bytes or the new, never a part, and no debris stays.

The order is write, fsync, rename, fsync of the directory (see fsync(2) and rename(2)). Errors are the system's own
`OSError`: whoever calls knows what the file is and says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path


def replace(
    path: Path, data: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None, sync: bool = True
) -> None:
    """Replace *path* by *data*, with *mode* and, if given, the *owner* (uid, gid).

    Many files that count only together are written without *sync*, and made durable with one `os.sync`.

    Raises:
        OSError: it cannot be written; the old file is untouched.

    """
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # says "alive" to `_remove_leftovers` of others
            os.fchmod(fd, mode)
            if owner:
                os.fchown(fd, *owner)
            write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
        if sync:
            sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of *data*: one `write` may take less.

    Raises:
        OSError: as the system says.

    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_directory(path: Path) -> None:
    """Make renames and unlinks in *path* durable.

    Raises:
        OSError: as the system says.

    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of *path* whose writer was killed: they may hold a key."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        try:
            fd = os.open(leftover, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # it went away, or is not ours to judge
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
        except OSError:
            pass  # somebody is writing it now
        finally:
            os.close(fd)
