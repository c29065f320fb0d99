"""Who owns which part of a home, put right: a home from another installation or a backup has other uids, or none.

Root works here in directories that belong to processes which read hostile data. A name in them may be a link when root
gets to it, whatever it was a moment before: owners and modes are changed on descriptors, and what must be written there
is written with the rights of the directory's owner.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from casemate.device.home import PARTS, READ_ONLY, Home, Owner, owner_of, shown_to
from casemate.errors import OperationError

_LOOK: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def hand_over(home: Home) -> None:
    """Give every part of *home* to the uid of its process, or show it to it (a no-op unless root)."""
    if os.geteuid() != 0:
        return
    for part, role in PARTS.items():
        if part != home.run.name:
            _own_tree(home.path / part, role, shown=part in READ_ONLY)
    own_directory(home.run, "agent")
    with contextlib.suppress(FileNotFoundError):
        _own(home.run / "lock", owner_of("agent"))


def own_directory(path: Path, role: str, mode: int | None = None) -> None:
    """Give the directory *path* to *role*, with *mode* when given (a no-op unless root).

    Raises:
        OperationError: there is something else.

    """
    owner = owner_of(role)
    try:
        fd = os.open(path, _LOOK | os.O_DIRECTORY)
    except OSError as error:
        raise OperationError(
            f"{path} is not a directory of this home: {error.strerror}",
            hint="remove it, and find out who put it there",
        ) from error
    try:
        if owner:
            os.fchown(fd, owner.uid, owner.gid)
        if mode is not None:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _own_tree(top: Path, role: str, *, shown: bool) -> None:
    owner = shown_to(role) if shown else owner_of(role)
    for _, _, names, folder in os.fwalk(top):
        _own_open(folder, owner, 0o750 if shown else None)
        for name in names:
            _own(Path(name), owner, 0o640 if shown else None, folder=folder)


def _own(path: Path, owner: Owner | None, mode: int | None = None, folder: int | None = None) -> None:
    """Change the owner of a regular file with one name; links and everything else are left alone."""
    try:
        fd = os.open(path, _LOOK, dir_fd=folder)
    except OSError:
        return  # a link, a socket, or gone meanwhile
    try:
        facts = os.fstat(fd)
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
            _own_open(fd, owner, mode)
    finally:
        os.close(fd)


def _own_open(fd: int, owner: Owner | None, mode: int | None) -> None:
    if owner:
        os.fchown(fd, owner.uid, owner.gid)
    if mode is not None:
        os.fchmod(fd, mode)


@contextlib.contextmanager
def rights_of_owner(directory: Path) -> Iterator[None]:
    """As root, have only the rights of the uid that owns *directory* until the block ends; else change nothing.

    Where a process of that uid planted a link, root would follow it with root's rights.
    """
    facts = directory.stat() if os.geteuid() == 0 and directory.exists() else None
    if facts is None or facts.st_uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(facts.st_gid)
    os.seteuid(facts.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
