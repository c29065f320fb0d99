"""A repository in one tar, from local media: read in place, never unpacked, so there is no path to escape through.

Stricter than tar: only the blocks that `formats.archive` writes (no links, devices, owners, extended headers), only
paths a repository has, each once, each within the bound of what it is. What is inside is verified as if it came over a
network; it proves nothing by having been carried in by a person.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final, Self

from casemate.device.update.source import Taken, ignore
from casemate.errors import NotFoundError, OperationError, UntrustedDataError
from casemate.formats import archive, grant, manifest

MEMBER_LIMIT: Final = 200_000
_METADATA_LIMIT: Final = 5_000_000  # python-tuf's own
_PART: Final = r"[0-9A-Za-z][0-9A-Za-z._+-]{0,140}"
_RULES: Final = (
    (re.compile(r"metadata/(timestamp|[1-9][0-9]{0,15}\.[a-z]{1,32})\.json\Z"), _METADATA_LIMIT),
    (re.compile(rf"targets/({_PART}/){{0,3}}[0-9a-f]{{64}}\.{_PART}\Z"), manifest.LIMIT),
    (re.compile(r"chunks/[0-9a-f]{2}/[0-9a-f]{64}\Z"), manifest.SEALED_LIMIT + 16),
    (re.compile(r"grants/[0-9a-f]{32}/[0-9a-f]{32}\.json\Z"), grant.LIMIT),
)
_ZERO: Final = bytes(archive.BLOCK)


class TarSource:
    """A `Source` over an export. Use it as a context: it closes the file."""

    offline = True

    def __init__(self, path: Path | int) -> None:
        """Read the tar's list; a number is a descriptor, which is closed with this.

        Raises:
            UntrustedDataError: `import-*`: it is no export of a repository.
            NotFoundError: there is no such file.
            OperationError: it cannot be read.

        """
        try:
            self._fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise NotFoundError(f"there is no {path}", hint="give the file of `casemate release export`") from None
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            self._index = _index(self._fd)
        except OSError as error:
            self.close()
            raise _unreadable(path, error) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Use it as a context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def get(self, path: str, limit: int, taken: Taken = ignore) -> bytes:  # noqa: ARG002 - no line is used
        """Return a file; see `Source`. *taken* is not told: the owner's limits are about the line.

        Raises:
            UntrustedDataError: also `import-truncated`: the medium was taken out, or is damaged.

        """
        if path not in self._index:
            raise NotFoundError(f"the export does not have {path}", hint="was it made for this device's channel?")
        offset, size = self._index[path]
        if size > limit:
            raise UntrustedDataError(f"the export has more than {limit} bytes for {path}", check="transfer-size")
        try:
            return _read(self._fd, size, offset)
        except OSError as error:
            raise OperationError(f"cannot read {path}: {error.strerror}", hint="is the medium still there?") from error


def _index(fd: int) -> dict[str, tuple[int, int]]:
    """Return where every file is: path -> (offset, size)."""
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        raise _refused("it is not a file", "import-header")
    found: dict[str, tuple[int, int]] = {}
    offset = 0
    while member := _member(_read(fd, archive.BLOCK, offset)):
        limit = next((limit for rule, limit in _RULES if rule.match(member.path)), -1)
        if limit < 0:
            raise _refused("it holds a path that no repository has", "import-path")
        if member.path in found:
            raise _refused(f"{member.path} is there twice", "import-duplicate")
        if member.size > limit or len(found) >= MEMBER_LIMIT:
            raise _refused(f"{member.path} is too large, or one file too many", "import-size")
        offset += archive.BLOCK
        found[member.path] = (offset, member.size)
        offset += member.size
        pad = archive.padding(member.size)
        if _read(fd, pad, offset) != _ZERO[:pad]:
            raise _refused("there is something between its files", "import-header")
        offset += pad
    if _read(fd, archive.BLOCK, offset + archive.BLOCK) != _ZERO or facts.st_size != offset + len(archive.END):
        raise _refused("there is something after its end", "import-header")
    return found


def _member(block: bytes) -> archive.Member | None:
    try:
        return archive.parse_block(block, created=0)
    except UntrustedDataError as error:
        raise _refused("it is damaged, or was not made by `casemate release export`", "import-header") from error


def _read(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise _refused("it ends early", "import-truncated")
    return data


def _refused(what: str, check: str) -> UntrustedDataError:
    return UntrustedDataError(
        f"the export was refused: {what}", check=check, hint="copy it again, or make it again; nothing of it was used"
    )


def _unreadable(path: Path | int, error: OSError) -> OperationError:
    return OperationError(f"cannot read {path}: {error.strerror}", hint="is the medium mounted and readable?")
