"""The file of the state, its key and the locks: all that is written into `update/` itself.

state        `state.State`, sealed; replaced atomically, readers never wait
state.key    the key that seals it and the records of generations: "software only"
state.lock   held by who changes the state, for a moment          gen.lock   by who writes or removes generations
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from casemate.crypto.secret import Secret
from casemate.device.home import Owner, write_atomic
from casemate.device.update import sealed_file, staging
from casemate.device.update import state as states
from casemate.device.update.state import State
from casemate.errors import BusyError, OperationError, UntrustedDataError

_LIMIT: Final = 1 << 20
_KEY_BYTES: Final = 32
_KEY: Final = "update-state-key"


class StateFile:
    """The state in the directory *path*."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path / "state"
        self._key_file = path / "state.key"

    def read(self) -> State:
        """Return the state.

        Raises:
            FileNotFoundError: there is none.
            UntrustedDataError: it is not good: never the same as none.

        """
        raw = staging.read_bounded(self._file, _LIMIT)
        with self.key() as key:
            return states.parse(sealed_file.unseal(key, "state", raw))

    def write(self, state: State) -> None:
        """Make *state* the state, durably; on an error the old one stays.

        Raises:
            OperationError: it cannot be written.
            UntrustedDataError: the key is gone.

        """
        body = states.encode(state)
        with self.key() as key:
            write_atomic(self._file, sealed_file.seal(key, "state", body), owner=self.owner())

    def begin(self) -> None:
        """Make the key on a device that never had a generation.

        Raises:
            UntrustedDataError: there was a state: its key is gone.

        """
        if self._key_file.exists():
            return
        if os.path.lexists(self._file):
            raise _key_is_gone()
        write_atomic(self._key_file, os.urandom(_KEY_BYTES), owner=self.owner())

    @contextlib.contextmanager
    def key(self) -> Iterator[Secret]:
        """Hold the key.

        Raises:
            UntrustedDataError: `update-state-key`: it is gone or damaged.

        """
        try:
            raw = staging.read_bounded(self._key_file, _KEY_BYTES)
        except FileNotFoundError:
            raise _key_is_gone() from None
        if len(raw) != _KEY_BYTES:
            raise UntrustedDataError("the key of the update's state is damaged", check=_KEY, hint=_WAY_OUT)
        with Secret(raw) as key:
            yield key

    def owner(self) -> Owner | None:
        """Return to whom files are given: when root writes, to whom the directory belongs."""
        if os.geteuid() != 0:
            return None
        facts = self._path.stat()
        return Owner(facts.st_uid, facts.st_gid)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Be the only one who changes the state."""
        with self._flock("state.lock", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def staging(self) -> Iterator[None]:
        """Be the only one who writes or removes generations.

        Raises:
            BusyError: somebody is.

        """
        with self._flock("gen.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    @contextlib.contextmanager
    def _flock(self, name: str, how: int) -> Iterator[None]:
        path = self._path / name
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OperationError(f"cannot open {path}: {error.strerror}", hint="check its owner") from error
        try:
            if owner := self.owner():
                os.fchown(fd, owner.uid, owner.gid)
            try:
                fcntl.flock(fd, how)
            except BlockingIOError:
                raise BusyError("another process works on an update", hint="wait for it, or stop it") from None
            yield
        finally:
            os.close(fd)


_WAY_OUT: Final = "restore it; or remove `gen`, `state` and `state.key` and update again: floors stay"


def _key_is_gone() -> UntrustedDataError:
    return UntrustedDataError("the key of the update's state is gone", check=_KEY, hint=_WAY_OUT)
