"""Who this device belongs to: two sets of files, made at enrolment, for two processes.

    fleet/member.json   agent   fleet, device id, the keys that command and witness: what obeying needs
    fleet/orders.json   agent   the last command obeyed, and the state it left (`device.fleet.orders`)
    link/device.key     link    the device's private key (PKCS #8), made here, never sent anywhere
    link/device.crt     link    its certificate and the issuers below the root
    link/link.json      link    the root, where to connect, where we connected last

The link cannot write what the agent obeys by: taking it over yields no command. `member.json` is written last and
removed first, so a device is a member exactly when it has all of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from casemate.device.home import Home, owner_of, write_atomic
from casemate.durable import sync_directory
from casemate.errors import NotFoundError, OperationError, UntrustedDataError
from casemate.formats.envelope import DeviceId, FleetId, Moment

Record = TypeVar("Record", bound=msgspec.Struct)

MEMBER: Final = "member.json"
ASKING: Final = "asking.key"
"""The key of a device that asked to join and is not in yet; root's, or the user's."""
LINK: Final = "link.json"
KEY: Final = "device.key"
CERTIFICATE: Final = "device.crt"
_LIMIT: Final = 64 * 1024
_AGAIN: Final = "`casemate device leave --yes`, then enrol it again"


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`fleet/member.json`. `command` and `director` are Ed25519 keys: of commands and of picks; `witness` is a vkey."""

    schema: Literal[1]
    fleet: FleetId
    device: DeviceId
    url: str
    command: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    witness: str
    since: Moment
    """When the fleet signed its charter: no moment before it can be now."""
    director: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)] | None = None
    directed: bool = False
    """The fleet has given this device a pick: from then on it takes nothing by itself, whatever became of the pick."""


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`link/link.json`. `root` is the fleet's root certificate (DER); `address` where the link connected last."""

    schema: Literal[1]
    devices: str
    root: bytes
    address: str = ""


def is_member(home: Home) -> bool:
    """Whether this device is enrolled."""
    return (home.fleet / MEMBER).exists()


def read_member(home: Home) -> Member | None:
    """Return whom this device belongs to; None when to nobody.

    Raises:
        UntrustedDataError: `fleet-member` the file is damaged: nothing is served until somebody looks.

    """
    return _read(home.fleet / MEMBER, Member, "fleet-member")


def read_place(directory: Path) -> Place:
    """Return where to connect, from the link's *directory*.

    Raises:
        NotFoundError: it is not there.
        UntrustedDataError: `fleet-place`.

    """
    place = _read(directory / LINK, Place, "fleet-place")
    if place is None:
        raise NotFoundError("this device has no identity in a fleet", hint=_AGAIN)
    return place


def write_identity(home: Home, place: Place, *, key: bytes, certificate: bytes) -> None:
    """Write what the link needs; *key* and *certificate* are PEM.

    Raises:
        OperationError: the disk is full or read-only.

    """
    for name, data in ((KEY, key), (CERTIFICATE, certificate), (LINK, msgspec.json.encode(place))):
        write_atomic(home.link / name, data, owner=owner_of("link"))


def write_member(home: Home, member: Member) -> None:
    """Make this device a member: the last step of enrolment.

    Raises:
        OperationError: the disk is full or read-only.

    """
    write_atomic(home.fleet / MEMBER, msgspec.json.encode(member), owner=owner_of("agent"))


def forget(home: Home) -> None:
    """End the membership on this side: the member file first, then everything else, leases on its keys too."""
    for folder, names in ((home.fleet, (MEMBER, ASKING)), (home.link, (KEY, CERTIFICATE, LINK))):
        for name in names:
            overwrite_and_remove(folder / name)
    for kept in (home.path / "attester" / "leases").glob("*"):
        overwrite_and_remove(kept)


def overwrite_and_remove(path: Path) -> bool:
    """Overwrite a file in place, make that durable, remove it; returns whether it was there.

    On flash the old bytes may survive in cells that nobody addresses any more: this is the best a program can do.

    Raises:
        OperationError: it is there and cannot be destroyed.

    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OperationError(f"cannot destroy {path}: {error.strerror}") from error
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size
            while left > 0:
                left -= os.write(file.fileno(), os.urandom(min(left, 1 << 20)))
            os.fsync(file.fileno())
        path.unlink()
        sync_directory(path.parent)
    except OSError as error:
        raise OperationError(f"cannot destroy {path}: {error.strerror}") from error
    return True


def _read(path: Path, kind: type[Record], check: str) -> Record | None:
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
        return msgspec.json.decode(data, type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperationError(f"cannot read {path}: {error.strerror}", hint="check its owner") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UntrustedDataError(f"{path.name} is damaged: {error}", check=check, hint=_AGAIN) from error
