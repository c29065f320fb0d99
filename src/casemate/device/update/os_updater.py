"""The operating system's own A/B slots, whoever swaps them: what updates need of RAUC, SWUpdate and the like.

An OS release is one signed bundle file. The slot's updater verifies its own signature again; what it does not know is
our floor, so `require_installable` comes first, whoever installs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from casemate.device.update.floors import Floors
from casemate.device.update.generation import Item
from casemate.errors import NotFoundError, PolicyDeniedError, UntrustedDataError


class Slot(msgspec.Struct, frozen=True):
    """One bootable slot; `boot_name` is what the boot loader calls it. `good`: the boot loader may start it."""

    name: str
    boot_name: str
    booted: bool
    good: bool


class OsStatus(msgspec.Struct, frozen=True):
    """What the host says: what kind of device it is, what runs, what starts next (slot names; "" unknown)."""

    compatible: str
    booted: str
    primary: str
    slots: tuple[Slot, ...]


class OsUpdater(Protocol):
    """Swaps the slots of one host."""

    kind: str

    def status(self) -> OsStatus:
        """Return the slots.

        Raises:
            HostError: the host has no such updater.
            OperationError: it does not answer.

        """
        ...

    def install(self, bundle: Path, release: Item) -> None:
        """Write the bundle of *release* to the slot that does not run; what starts next stays the same.

        Raises:
            PolicyDeniedError: *release* is below the floor.
            UntrustedDataError: `os-bundle`: it is not that release's file, or the updater refuses it.
            HostError, OperationError: as `status`.

        """
        ...

    def activate(self) -> None:
        """Make the other slot the one that starts next."""
        ...

    def mark_good(self) -> None:
        """Tell the boot loader that the running slot is good."""
        ...

    def mark_bad(self) -> None:
        """Tell the boot loader that the running slot is bad: the next start is the other one."""
        ...


SlotChoice = Literal["booted", "other"]


def require_installable(bundle: Path, release: Item, floors: Floors) -> None:
    """Refuse what must not be installed, before an updater sees a byte of it.

    Raises:
        PolicyDeniedError: *release* is below the floor.
        NotFoundError: there is no bundle.
        UntrustedDataError: `os-bundle`: it is not an OS release, or not its file.

    """
    if release.kind != "os" or len(release.files) != 1:
        raise UntrustedDataError(f"{release.artefact} is not an OS release of one bundle", check="os-bundle")
    floor = floors.security_of(release.kind, release.name)
    if release.security_version < floor:
        raise PolicyDeniedError(
            f"{release.artefact} has security version {release.security_version}; this device runs {floor} or higher",
            hint="older versions stay out: publish a newer one",
        )
    try:
        with bundle.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise NotFoundError(f"cannot read the OS bundle: {error.strerror}", hint="fetch the update again") from error
    if (size, found) != (release.files[0].size, release.files[0].sha256):
        raise UntrustedDataError(
            "the OS bundle is not the file that the release names", check="os-bundle", hint="fetch the update again"
        )
