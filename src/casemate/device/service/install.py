"""Carrying an installation out, on this machine or in an image's tree, and taking it back file by file.

Every path is walked from the root given, one directory at a time and without following links: a link in an image must
not lead a file of ours onto the machine that builds it. The manifest is written first, so that an installation that was
cut short can be removed like a whole one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from casemate.device.service.plan import MANIFEST, SCHEMA, Manifest, Plan, digest, manifest
from casemate.errors import BusyError, ConfigError, NotFoundError, OperationError, UntrustedDataError
from casemate.formats.decoding import MALFORMED

_LIMIT: Final = 1 << 20


class Tree:
    """Files below a root directory, by their absolute paths inside it."""

    def __init__(self, root: Path) -> None:
        """Work below *root* (`/` is this machine)."""
        self._root = root

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None when it is not there.

        Raises:
            UntrustedDataError: `image-link`: a directory on the way is a link.

        """
        try:
            with self._folder(path) as (folder, name):
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OperationError(f"cannot read {path}: {error.strerror}") from error
        with os.fdopen(fd, "rb") as file:
            return file.read(_LIMIT)

    def link_target(self, path: str) -> str | None:
        """Return where the link *path* leads, None when there is no such link."""
        try:
            with self._folder(path) as (folder, name):
                return os.readlink(name, dir_fd=folder)
        except OSError:
            return None

    def write(self, path: str, data: bytes) -> None:
        """Replace a file (0644) and make missing directories (0755).

        Raises:
            OperationError: it cannot be written.

        """
        temporary = f".{secrets.token_hex(6)}.tmp"
        try:
            with self._folder(path, make=True) as (folder, name):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                with os.fdopen(os.open(temporary, flags, 0o644, dir_fd=folder), "wb") as file:
                    os.fchmod(file.fileno(), 0o644)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
        except OSError as error:
            raise OperationError(f"cannot write {path}: {error.strerror}", hint="run it with sudo") from error

    def link(self, path: str, target: str) -> None:
        """Make a link, or leave the same one.

        Raises:
            OperationError: something else is there, or it cannot be made.

        """
        if self.link_target(path) == target:
            return
        try:
            with self._folder(path, make=True) as (folder, name):
                os.symlink(target, name, dir_fd=folder)
        except OSError as error:
            raise OperationError(f"cannot make the link {path}: {error.strerror}") from error

    def remove(self, path: str) -> None:
        """Remove a file or link, if it is there."""
        try:
            with self._folder(path) as (folder, name):
                os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OperationError(f"cannot remove {path}: {error.strerror}", hint="run it with sudo") from error

    def missing_folders(self, paths: Iterable[str]) -> list[str]:
        """Return the directories that writing *paths* will make, parents first."""
        wanted = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
        return sorted(folder for folder in wanted if not self._is_folder(folder))

    def _is_folder(self, path: str) -> bool:
        try:
            with self._folder(f"{path.rstrip('/')}/x"):
                return True
        except FileNotFoundError:
            return False

    def remove_folder(self, path: str) -> None:
        """Remove a directory if it is empty."""
        with contextlib.suppress(OSError), self._folder(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    @contextlib.contextmanager
    def _folder(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Walk to the directory of *path*; yields its descriptor and the last name."""
        *folders, name = path.lstrip("/").split("/")
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for folder in folders:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, 0o755, dir_fd=fd)
                deeper = _enter(fd, folder, path)
                os.close(fd)
                fd = deeper
            yield fd, name
        finally:
            os.close(fd)


def _enter(fd: int, folder: str, path: str) -> int:
    facts = os.stat(folder, dir_fd=fd, follow_symlinks=False)
    if stat.S_ISLNK(facts.st_mode):
        raise UntrustedDataError(
            f"{folder!r} on the way to {path} is a link", check="image-link", hint="replace it by a directory"
        )
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=fd)


def read_manifest(tree: Tree) -> Manifest | None:
    """Return what the last installation wrote, None when there is none.

    Raises:
        ConfigError: the manifest is damaged.

    """
    data = tree.read(MANIFEST)
    if data is None:
        return None
    try:
        known = msgspec.json.decode(data, type=Manifest)
    except MALFORMED as error:
        raise ConfigError(f"{MANIFEST} is damaged: {error}", hint="remove the files it should name by hand") from error
    if known.schema != SCHEMA:
        raise ConfigError(f"{MANIFEST} has schema {known.schema}", hint="uninstall with the version that wrote it")
    return known


def write(plan: Plan, tree: Tree) -> None:
    """Write the manifest, every file and every link; on a fault what was new is taken back.

    Raises:
        BusyError: a file is there that no installation of ours wrote, or somebody changed one.
        OperationError: it cannot be written.

    """
    before = read_manifest(tree)
    require_ours(plan, tree, before)
    folders = tree.missing_folders([*plan.files, *plan.links, MANIFEST])
    wanted = manifest(plan, [*(before.folders if before else ()), *folders])
    try:
        _remember(tree, wanted, before)
        for path, text in plan.files.items():
            tree.write(path, text.encode())
        for path, target in plan.links.items():
            tree.link(path, target)
        for path in (set(before.files) | set(before.links)) - set(plan.files) - set(plan.links) if before else ():
            tree.remove(path)
        _remember(tree, wanted, None)
    except (OperationError, UntrustedDataError):
        if before is None:
            with contextlib.suppress(OperationError, UntrustedDataError, NotFoundError, ConfigError):
                remove(tree)
        raise


def _remember(tree: Tree, wanted: Manifest, before: Manifest | None) -> None:
    """Write the manifest; while files are being replaced both old and new ones are ours."""
    files = {**(before.files if before else {}), **wanted.files}
    links = {**(before.links if before else {}), **wanted.links}
    known = msgspec.structs.replace(wanted, files=files, links=links)
    tree.write(MANIFEST, msgspec.json.format(msgspec.json.encode(known)) + b"\n")


def require_ours(plan: Plan, tree: Tree, before: Manifest | None) -> None:
    """Refuse to overwrite what somebody else wrote.

    Raises:
        BusyError: names the file.

    """
    for path, text in plan.files.items():
        data = tree.read(path)
        known = before.files.get(path) if before else None
        if data is not None and digest(data) not in {known, digest(text.encode())}:
            raise BusyError(
                f"{path} was changed, or is not of this installation",
                hint=f"move it away (changes belong in a drop-in: `systemctl edit {path.rpartition('/')[2]}`)",
            )


def remove(tree: Tree) -> tuple[Manifest, list[str]]:
    """Remove what the manifest names; returns it, and the files that were left because somebody changed them.

    Raises:
        NotFoundError: nothing is installed.
        OperationError: a file cannot be removed.

    """
    known = read_manifest(tree)
    if known is None:
        raise NotFoundError("no service is installed here", hint="see `casemate service install --dry-run`")
    left = []
    for path, target in known.links.items():
        if tree.link_target(path) == target:
            tree.remove(path)
    for path, wrote in known.files.items():
        data = tree.read(path)
        if data is None:
            continue
        if digest(data) == wrote:
            tree.remove(path)
        else:
            left.append(path)
    tree.remove(MANIFEST)
    for folder in reversed(known.folders):
        tree.remove_folder(folder)
    return known, left
