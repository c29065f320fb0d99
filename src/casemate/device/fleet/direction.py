"""What the fleet's director said last, and the word the device owes it: one file, and how a pick is followed.

    fleet/pick.json     agent     the signed pick, whole, and the device's newest word until the fleet has it
    fleet/member.json   agent     that there ever was one (`Member.directed`), written before it

A device that was never given a pick takes updates by itself. From the first pick on it is directed, for as long as it
is a member: without one that holds, also when the file is gone, it takes nothing from its repository. What a person
brings on local media is that person's act and needs no pick.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from casemate.device.fleet.membership import Member
from casemate.device.home import Home, owner_of, write_atomic
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import director
from casemate.formats.director import Pick

FILE: Final = "pick.json"
RENEW_BEFORE: Final = 86_400
_LIMIT: Final = 64 * 1024


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`fleet/pick.json`."""

    schema: Literal[1] = 1
    pick: bytes = b""
    word: bytes = b""
    """The payload of the newest word; the link signs it."""
    owed: bool = False


class Direction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for an update. *directed* without a pick: nothing may be taken."""

    directed: bool
    pick: Pick | None = None

    def as_message(self) -> dict[str, Any]:
        """Return it for the update process."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


FREE: Final = Direction(directed=False)


class PickFile:
    """The file, read and replaced whole."""

    def __init__(self, home: Home) -> None:
        """Keep it in *home*."""
        self._path = home.fleet / FILE

    def read(self) -> Record | None:
        """Return what it holds; None: there is no file.

        Raises:
            UntrustedDataError: `fleet-pick` it is damaged: nothing is taken until there is another pick.
            OperationError: it cannot be read.

        """
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_LIMIT), type=Record)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OperationError(f"cannot read {self._path}: {error.strerror}", hint="check its owner") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UntrustedDataError(f"{FILE} is damaged: {error}", check="fleet-pick") from error

    def write(self, record: Record) -> None:
        """Make *record* durable."""
        write_atomic(self._path, msgspec.json.encode(record), owner=owner_of("agent"))

    def forget(self) -> None:
        """Remove it with the membership: what one fleet said directs nobody in another."""
        self._path.unlink(missing_ok=True)


def standing(home: Home, member: Member | None, earliest: float) -> tuple[Record, Direction]:
    """Return what the file holds and what follows from it, at a moment that is *earliest* or later.

    A pick that is damaged, foreign, over or taken away directs to nothing: that is a refusal and never freedom.
    """
    if member is None or member.director is None:
        return Record(), FREE
    try:
        record = PickFile(home).read()
    except (UntrustedDataError, OperationError):
        return Record(), Direction(directed=True)
    if record is None:
        return Record(), Direction(directed=True) if member.directed else FREE
    return record, follow(record.pick, member, earliest)


def follow(raw: bytes, member: Member, earliest: float) -> Direction:
    """Prove the pick *raw* and return what it directs to."""
    try:
        found = verify(raw, member, after=0, earliest=earliest)
    except UntrustedDataError:
        return Direction(directed=True)
    return Direction(directed=True, pick=found)


def verify(raw: bytes, member: Member, *, after: int, earliest: float) -> Pick:
    """Prove a pick.

    Raises:
        UntrustedDataError: it is not the director's for this device, or not newer; see `formats.director`.

    """
    if member.director is None:
        raise UntrustedDataError("this device knows no director", check="pick-director")
    return director.verify_pick(
        raw, public=member.director, fleet=member.fleet, device=member.device, after=after, earliest=earliest
    ).pick


def decode(message: dict[str, Any]) -> Direction:
    """Read what `Direction.as_message` made; anything less is no freedom.

    Raises:
        UntrustedDataError: `fleet-direction` it is something else.

    """
    try:
        return msgspec.convert(message, Direction)
    except msgspec.ValidationError as error:
        raise UntrustedDataError(f"not a direction: {error}", check="fleet-direction", hint="this is a bug") from error
