"""What a fleet ordered: a state machine over commands, as a table, and the one file that remembers it.

state          command       next           what is done
SERVING        ping attest   SERVING        answered
SERVING        quarantine    QUARANTINED    engines and vault end (keys leave memory), the network is fenced
SERVING        release       SERVING        answered
QUARANTINED    ping attest   QUARANTINED    answered
QUARANTINED    quarantine    QUARANTINED    done again: it must hold
QUARANTINED    release       SERVING        the fence falls, vault and engines start
any but WIPED  wipe          WIPING         keys are destroyed, then it is proven, then the device's own key goes
WIPING         wipe          WIPING         answered: a fleet that missed the proof orders it again
WIPING         (proven)      WIPED          nothing is left to do: this device serves nothing, ever
WIPING WIPED   the rest      -              refused

The file is written before anything is done, so a power cut leads into the state, never past it, and no command is
obeyed twice. A member without the file, or with one that is damaged, obeys nothing and serves nothing.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

import msgspec

from casemate.device.fleet.membership import Member, read_member
from casemate.device.home import Home, owner_of, write_atomic
from casemate.errors import OperationError, PolicyDeniedError, UntrustedDataError
from casemate.formats.envelope import Command, Digest, Moment, Verb, VerifiedCommand

FILE: Final = "orders.json"
_LIMIT: Final = 64 * 1024
_REPAIR: Final = "`casemate device leave --yes`, then enrol it again"


class State(StrEnum):
    """Where a member stands."""

    SERVING = "serving"
    QUARANTINED = "quarantined"
    WIPING = "wiping"
    WIPED = "wiped"


NEXT: Final[dict[State, dict[Verb, State]]] = {
    State.SERVING: {
        Verb.PING: State.SERVING,
        Verb.ATTEST: State.SERVING,
        Verb.RELEASE: State.SERVING,
        Verb.QUARANTINE: State.QUARANTINED,
        Verb.WIPE: State.WIPING,
    },
    State.QUARANTINED: {
        Verb.PING: State.QUARANTINED,
        Verb.ATTEST: State.QUARANTINED,
        Verb.QUARANTINE: State.QUARANTINED,
        Verb.RELEASE: State.SERVING,
        Verb.WIPE: State.WIPING,
    },
    State.WIPING: {Verb.WIPE: State.WIPING},
    State.WIPED: {},
}


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The command that was accepted last, and the name it was delivered under: what an answer needs."""

    command: Command
    digest: Digest
    outcome: Literal["done", "refused"]
    name: str


class Orders(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`fleet/orders.json`. `signed` is the newest moment the fleet signed (Unix seconds); `owed`: `last` has no answer.

    `address` and `port` are where the fleet was reached: what a fence leaves open. `owner` is the journal's recipient,
    kept because the keystore that holds it is destroyed.
    """

    schema: Literal[1]
    state: State
    sequence: int
    signed: Moment
    since: Moment = 0
    reason: str = ""
    last: Order | None = None
    owed: bool = False
    address: str = ""
    port: int = 0
    owner: str = ""


def first(signed: int) -> Orders:
    """Return the state of a new member; *signed* is the moment of its charter."""
    return Orders(1, State.SERVING, 0, signed)


def obey(orders: Orders, verified: VerifiedCommand, name: str, now: float) -> Orders:
    """Return the state after *verified*, delivered as *name* (*now* is kept for people).

    Its sequence is used up even when it is refused.
    """
    command = verified.command
    following = NEXT[orders.state].get(verified.verb)
    seen = msgspec.structs.replace(
        orders,
        sequence=max(orders.sequence, command.sequence),
        signed=max(orders.signed, command.issued),
        last=Order(command, verified.digest, "refused" if following is None else "done", name),
        owed=True,
    )
    if following is None or following is orders.state:
        return seen
    return msgspec.structs.replace(seen, state=following, since=int(now), reason=command.reason)


def answered(orders: Orders, name: str) -> Orders:
    """Return the state once the fleet has the answer to the command *name*: a wipe that is proven is over."""
    if orders.last is None or orders.last.name != name:
        return orders
    proven = orders.state is State.WIPING and orders.last.command.verb == Verb.WIPE
    return msgspec.structs.replace(orders, owed=False, state=State.WIPED if proven else orders.state)


class OrdersFile:
    """The durable state. Only its owner can read it; it is replaced whole."""

    def __init__(self, home: Home) -> None:
        """Keep it in *home*."""
        self.path: Path = home.fleet / FILE

    def read(self) -> Orders:
        """Return the state.

        Raises:
            UntrustedDataError: `fleet-orders` missing or damaged: never read as "no orders".
            OperationError: it cannot be read.

        """
        try:
            with self.path.open("rb") as file:
                return msgspec.json.decode(file.read(_LIMIT), type=Orders)
        except FileNotFoundError as error:
            raise UntrustedDataError("the fleet's orders are missing", check="fleet-orders", hint=_REPAIR) from error
        except OSError as error:
            raise OperationError(f"cannot read {self.path}: {error.strerror}", hint="check its owner") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UntrustedDataError(
                f"the fleet's orders are damaged: {error}", check="fleet-orders", hint=_REPAIR
            ) from error

    def write(self, orders: Orders) -> None:
        """Make *orders* durable.

        Raises:
            OperationError: the disk is full or read-only; the old state holds.

        """
        write_atomic(self.path, msgspec.json.encode(orders), owner=owner_of("agent"))


def standing(home: Home) -> tuple[Member, Orders] | None:
    """Return whom this device obeys and where it stands; None when it belongs to nobody.

    Raises:
        UntrustedDataError: what says so is damaged or missing: nothing may be served.
        PolicyDeniedError: it was wiped.

    """
    member = read_member(home)
    if member is None:
        return None
    orders = OrdersFile(home).read()
    require_not_wiped(orders)
    return member, orders


def require_not_wiped(orders: Orders) -> None:
    """Refuse to serve what was wiped.

    Raises:
        PolicyDeniedError: the fleet wiped this device.

    """
    if orders.state is State.WIPED:
        raise PolicyDeniedError(
            "this device was wiped by its fleet: its keys are destroyed",
            hint="to begin anew, without the old models: `casemate device leave --yes`",
        )
