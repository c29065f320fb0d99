"""The journal's directory: the public C2SP files, and beside them what only this device needs.

    checkpoint                      newest published checkpoint (signed note)
    tile/<L>/..., tile/entries/...  tiles and entry bundles
    log.vkey                        the log's public key
    epochs/<n>.json                 epoch keys, sealed to the owner
    log.key   (0600)                the log's private key
    tail      (0600)                acknowledged entries whose tiles may not be on disk for good yet
    lock                            held by the one writer

Every replacement is atomic for a reader. `sync=True` also makes it durable; without it a crash may lose or empty the
file, which only the writer's recovery may rely on being repairable (tiles and bundles that the tail still holds).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from casemate.durable import sync_directory, write_all
from casemate.errors import BusyError, NotFoundError, OperationError, UntrustedDataError

PUBLIC: Final = 0o644
PRIVATE: Final = 0o600
_READ_LIMIT: Final = 64 * 1024 * 1024


class LogFiles:
    """Reads and writes names relative to one journal directory."""

    def __init__(self, directory: Path) -> None:
        """Work in *directory*, which need not exist yet."""
        self.directory = directory

    # -- reading

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError: it is not there.
            OperationError: it cannot be read.
            UntrustedDataError: `file-size` the journal would never write one as large.

        """
        try:
            fd = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                data = file.read(_READ_LIMIT + 1)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _read_error(self.directory / name, error) from error
        if len(data) > _READ_LIMIT:
            raise UntrustedDataError(f"{name} is larger than anything the journal writes", check="file-size")
        return data

    def size(self, name: str) -> int:
        """Return a file's length in bytes, -1 when it is not there."""
        try:
            return (self.directory / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return -1

    def exists(self, name: str) -> bool:
        """Return whether *name* is there."""
        return (self.directory / name).exists()

    def names(self, folder: str) -> list[str]:
        """Return the names in *folder*, sorted; none when it is not there.

        Raises:
            OperationError: it cannot be read.

        """
        try:
            return sorted(entry.name for entry in (self.directory / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _read_error(self.directory / folder, error) from error

    # -- writing

    def write(self, name: str, data: bytes, *, sync: bool = False, mode: int = PUBLIC) -> None:
        """Replace *name* atomically, and durably with *sync*.

        Raises:
            OperationError: disk full, read-only or not ours.

        """
        path = self.directory / name
        temporary = path.with_name(f".{path.name}.tmp")  # one writer, so one name; a left-over is overwritten
        try:
            self.make_folder(path.parent)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            try:
                os.fchmod(fd, mode)
                write_all(fd, data)
                if sync:
                    os.fdatasync(fd)
            finally:
                os.close(fd)
            temporary.rename(path)
            if sync:
                sync_directory(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise write_error(path, error) from error

    def sync(self, names: Iterable[str]) -> None:
        """Make files written without `sync` durable, and their directories.

        Raises:
            OperationError: the disk reports a fault.

        """
        folders: dict[Path, None] = {}
        try:
            for name in names:
                path = self.directory / name
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
                folders[path.parent] = None
                folders[path.parent.parent] = None
            for folder in folders:
                sync_directory(folder)
        except OSError as error:
            raise write_error(self.directory, error) from error

    def remove_folder(self, name: str) -> None:
        """Delete a folder of partial tiles, if it is there."""
        shutil.rmtree(self.directory / name, ignore_errors=True)

    def open_for_append(self, name: str) -> int:
        """Open a private file for reading and appending; the caller closes the descriptor."""
        try:
            return os.open(self.directory / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise write_error(self.directory / name, error) from error

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it."""
        if folder.is_dir():
            return
        self.make_folder(folder.parent)
        folder.mkdir(mode=0o755, exist_ok=True)

    # -- one writer

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one writer.

        Raises:
            BusyError: a running device or another command writes.
            NotFoundError: there is no such directory.

        """
        try:
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
        except FileNotFoundError as error:
            raise NotFoundError(f"no journal directory at {self.directory}", hint="run `casemate up` first") from error
        except OSError as error:
            raise write_error(self.directory / "lock", error) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(
                    "the journal is being written by a running device or another command",
                    hint="stop the device first, or let it write: `casemate status`",
                ) from None
            yield
        finally:
            os.close(fd)


def _read_error(path: Path, error: OSError) -> OperationError:
    hint = "run as root or as the user who owns the home" if isinstance(error, PermissionError) else ""
    return OperationError(f"cannot read {path}: {error.strerror}", hint=hint)


def write_error(path: Path, error: OSError) -> OperationError:
    """Return *error* in the product's words."""
    return OperationError(
        f"the journal cannot write {path}: {error.strerror}",
        hint="free space on this disk or make it writable; nothing that was acknowledged is lost",
    )
