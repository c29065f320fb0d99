"""Files of a release machine: read bounded, replaced whole and durably, secrets readable by their owner only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from casemate import durable
from casemate.errors import NotFoundError, OperationError

PUBLIC: Final = 0o644
PRIVATE: Final = 0o600
SMALL: Final = 32 << 20


def read(path: Path, what: str, limit: int = SMALL) -> bytes:
    """Return the bytes of *path*.

    Raises:
        NotFoundError: it is not there.
        OperationError: it cannot be read, or is larger than *limit* bytes.

    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"no {what} at {path}", hint="check the path") from error
    except OSError as error:
        raise OperationError(f"cannot read the {what} {path}: {error.strerror}") from error
    if len(data) > limit:
        raise OperationError(f"the {what} {path} is larger than {limit >> 20} MiB", hint="this is not the right file")
    return data


def replace(path: Path, data: bytes, *, mode: int = PUBLIC, sync: bool = True) -> None:
    """Write *data* to *path* so that a reader, or a power cut, sees the old bytes or the new, never a part.

    Many files that count only together are written without *sync*, then made so with one `os.sync`.

    Raises:
        OperationError: it cannot be written; the old file is untouched.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(path, data, mode=mode, sync=sync)
    except OSError as error:
        raise OperationError(f"cannot write {path}: {error.strerror}", hint="free space, then try again") from error
