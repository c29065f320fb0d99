"""Mounts in a namespace of this process alone, so that code root may read can be read after root is given up.

The interpreter and this package may lie where other uids may not look (`/root` is 0700). As root a process that is
about to drop to a uid of its own covers each closed directory with an empty one that everyone may walk through, and
binds back, read-only, the trees it runs from. What else lies in the closed directory is out of its sight for good.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from casemate.errors import HostError

CLONE_NEWNS: Final = 0x0002_0000
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def private_mounts() -> None:
    """Leave the mount namespace of the host: what is mounted from here on is seen by this process alone."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    mount(None, "/", None, MS_REC | MS_PRIVATE)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Attach a file system, or bind a directory.

    Raises:
        HostError: the kernel refused.

    """
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    extra = None if data is None else data.encode()
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), extra), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise HostError(
            f"{what}: {os.strerror(ctypes.get_errno())}",
            hint="install casemate where every user may read it (/opt), or run it as an ordinary user",
        )


def closed_directory(tree: str) -> str | None:
    """Return the topmost directory on the way to *tree* that other uids may not enter, or None."""
    way = [*reversed(Path(tree).parents), Path(tree)]
    return next((str(part) for part in way if not part.stat().st_mode & stat.S_IXOTH), None)


def open_to_everyone(trees: Iterable[str]) -> None:
    """Make *trees* readable for the uid this process is about to take. Does nothing when they are already.

    Raises:
        HostError: mounts are not allowed here.

    """
    closed: dict[str, list[str]] = {}
    for tree in trees:
        if directory := closed_directory(tree):
            closed.setdefault(directory, []).append(tree)
    if not closed:
        return
    before = os.umask(0o022)
    private_mounts()
    for directory, below in closed.items():
        _uncover(directory, below)
    os.umask(before)
    os.chdir("/")


def _uncover(directory: str, trees: Sequence[str]) -> None:
    held = [(tree, os.open(tree, os.O_PATH | os.O_CLOEXEC)) for tree in trees]  # of this namespace: others do not bind
    mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64k")
    for tree, fd in held:
        Path(tree).mkdir(mode=0o755, parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{fd}", tree, None, MS_BIND | MS_REC)
        mount(None, tree, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
        os.close(fd)
