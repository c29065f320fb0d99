"""Destroying the keys of a home: what wipe does, in the order that leaves the least if the power goes.

1  the keystore: without it no secret that anybody knows or holds leads to a model, or into the journal
2  in every container the area with its wrapped data key: an older copy of the keystore opens nothing here any more
3  the key file, and the key under the update floors, where this process may reach them

Everything is overwritten in place, made durable, then removed. On flash old bytes may survive in cells that nobody
addresses any more: "keys destroyed" is claimed, "data erased" never is. Containers stay, as noise.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from casemate.device.containers import SUFFIX
from casemate.device.fleet.membership import overwrite_and_remove
from casemate.device.home import Home
from casemate.errors import OperationError
from casemate.formats.container import HEAD_BYTES

_FLOOR_KEYS: Final = ("update/floors.key", "update/floors")


class Destroyed(msgspec.Struct, frozen=True):
    """What is gone. *keystore* and *slots* are what a proof rests on; the rest is depth."""

    keystore: bool
    slots: bool
    containers: int
    keyfile: bool
    floors: bool

    @property
    def keys(self) -> bool:
        """Whether "keys destroyed" may be said."""
        return self.keystore and self.slots


def destroy_keys(home: Home, keyfile: Path | None = None) -> Destroyed:
    """Destroy what is in reach; never raises, and says what failed. Doing it twice is the same as once."""
    keystore = _clear(home.keystore)
    found = sorted(home.models.glob(f"*{SUFFIX}")) + sorted(home.models.glob(f".*{SUFFIX}*"))
    slots = [_clear_head(path) for path in found]
    floors = [_gone(home.path / name) for name in _FLOOR_KEYS]
    return Destroyed(keystore, all(slots), len(found), keyfile is not None and _gone(keyfile), all(floors))


def _clear(directory: Path) -> bool:
    """Destroy every file of *directory*, left-overs of unfinished writes too."""
    try:
        gone = [_gone(path) for path in directory.iterdir()]  # every one, also after one that failed
        return all(gone)
    except OSError:
        return False


def _gone(path: Path) -> bool:
    """Destroy *path*; true when it is not there any more."""
    with contextlib.suppress(OperationError):
        overwrite_and_remove(path)
    return not os.path.lexists(path)


def _clear_head(path: Path) -> bool:
    """Overwrite what stands before a container's chunks: header, wrapped keys, labels."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        size = min(HEAD_BYTES, os.fstat(fd).st_size)
        written = os.pwrite(fd, os.urandom(size), 0)
        os.fsync(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return written == size
