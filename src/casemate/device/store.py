"""Where containers lie, and how one is opened and proven: all that the vault needs of the store of models."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from casemate.crypto.secret import Secret
from casemate.device import containers
from casemate.device.containers import SUFFIX, OpenContainer
from casemate.device.home import Home
from casemate.errors import NotFoundError, OperationError, UntrustedDataError
from casemate.formats import container as fmt
from casemate.formats.container import UntrustedContainer, VerifiedContainer
from casemate.formats.lease import LeasedKey
from casemate.ids import parse_name
from casemate.keystores import UnlockedKeystore


def path_of(home: Home, name: str) -> Path:
    """Return where the container of *name* lies.

    Raises:
        UsageError: *name* is not a name.

    """
    return home.models / (parse_name(name, "model") + SUFFIX)


def names(home: Home) -> list[str]:
    """Return the name of every container, in order.

    Raises:
        OperationError: the directory cannot be read.

    """
    try:
        files = sorted(path.name for path in home.models.iterdir())
    except OSError as error:
        raise OperationError(f"cannot read {home.models}: {error.strerror}", hint=containers.OWNER_HINT) from error
    return [file.removesuffix(SUFFIX) for file in files if file.endswith(SUFFIX) and not file.startswith(".")]


def unknown(home: Home, name: str) -> NotFoundError:
    """Return the error for a name that is not there, with the names that are."""
    have = ", ".join(names(home)) or "none"
    return NotFoundError(f"no model {name!r}", hint=f"have: {have}; add one with `casemate model add FILE`")


@contextlib.contextmanager
def opened_model(
    home: Home, keystore: UnlockedKeystore, name: str, *, locked: bool = False, leased: LeasedKey | None = None
) -> Iterator[tuple[OpenContainer, VerifiedContainer]]:
    """Open the container of *name* and prove its header, slots and labels; chunks prove themselves when they are read.

    *locked*: the caller holds `containers.models_lock` exclusively. *leased*: the key of a gated model.

    Raises:
        NotFoundError: there is none of that name.
        UntrustedDataError: it was changed, swapped or made for another keystore.
        PolicyDeniedError: it is gated, and there is no leased key.

    """
    try:
        opened = containers.open_container(path_of(home, name))
    except NotFoundError:
        raise unknown(home, name) from None
    with opened:
        with _data_key(opened.container, keystore, leased) as data_key:
            verified = fmt.verify(opened.container, data_key)
        if verified.labels.name != name:
            raise UntrustedDataError(
                f"the container called {name!r} was added as {verified.labels.name!r}",
                check="container-name",
                hint="somebody moved model files: remove it and add the model again",
            )
        containers.finish_pending(opened, locked=locked)
        yield opened, verified


def _data_key(container: UntrustedContainer, keystore: UnlockedKeystore, leased: LeasedKey | None) -> Secret:
    if leased:
        return containers.unwrap_leased(container, leased)
    return containers.unwrap_for_home(container, keystore)


def require_space(directory: Path, size: int) -> None:
    """Check that a container of *size* plain bytes fits.

    Raises:
        OperationError: it does not.

    """
    room = os.statvfs(directory)
    free = room.f_bavail * room.f_frsize
    if size + fmt.HEAD_BYTES + (1 << 20) > free:
        raise OperationError(
            f"the model needs {size >> 20} MiB in {directory} and {free >> 20} MiB are free",
            hint="free space, or set CASEMATE_HOME to a larger disk; nothing was changed",
        )
