"""Joining and leaving a fleet, as commands do it.

What a server says is read in a process that is not root: it makes the device's key, speaks to the server, and hands
back what both sides of the device must keep. The key is written once, here, and is never sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import msgspec

from casemate.clock import Clock
from casemate.crypto import client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.device import admin, apart
from casemate.device.fleet import membership, orders
from casemate.device.fleet.direction import PickFile
from casemate.device.fleet.membership import Member, Place
from casemate.device.fleet.orders import OrdersFile, State
from casemate.device.home import Home, owner_of, write_atomic
from casemate.device.process import drop_privileges
from casemate.device.record import record
from casemate.device.usage import choice, diary
from casemate.errors import BusyError, NotFoundError, OperationError, PolicyDeniedError, UntrustedDataError
from casemate.formats import event
from casemate.formats.enrolment import Token
from casemate.keystores import tss
from casemate.link import enrol as est


class _Joined(msgspec.Struct):
    """What the process that spoke to the server hands back."""

    member: Member
    place: Place
    key: bytes
    certificate: bytes


def enrol(home: Home, url: str, token: Token, root_pem: bytes | None, clock: Clock, *, tpm: str = "") -> Member:
    """Make this device a member of the fleet at *url*; with the TPM at *tpm*, where one is named.

    Raises:
        BusyError: it is a member of one.
        UntrustedDataError: the server is not the fleet's; the token was not sent.
        NotAuthorisedError: the fleet refused the token.
        OperationError: nobody answered, or the disk is full.

    """
    home.create()
    if membership.is_member(home):
        raise BusyError("this device belongs to a fleet already", hint="`casemate device leave` first")
    joined = _join(url, token, root_pem, tpm, _asking_key(home))
    OrdersFile(home).write(orders.first(joined.member.since))
    membership.write_identity(home, joined.place, key=joined.key, certificate=joined.certificate)
    membership.write_member(home, joined.member)
    membership.overwrite_and_remove(home.fleet / membership.ASKING)
    _tell(home, event.fleet_joined(fleet=joined.member.fleet, device=joined.member.device, now=clock.wall()))
    return joined.member


def _asking_key(home: Home) -> EcKey:
    """Return the key to ask with, the same until it is let in: an operator says yes to a key, not to who comes next.

    Raises:
        OperationError: it cannot be kept.

    """
    path = home.fleet / membership.ASKING
    with contextlib.suppress(FileNotFoundError, UntrustedDataError):
        return EcKey.load_pem(path.read_bytes())
    key = EcKey.generate()
    write_atomic(path, key.pem())
    return key


def _join(url: str, token: Token, root_pem: bytes | None, tpm: str, key: EcKey) -> _Joined:
    def work() -> tuple[_Joined, Mapping[str, int]]:
        root = client_certificate.from_pem(root_pem)[0] if root_pem else None
        with contextlib.ExitStack() as held:
            chip = held.enter_context(tss.open_tpm(tpm)) if tpm else None  # the link's uid may not open it
            drop_privileges(owner_of("link"))
            found = est.join(url, token, key, root, chip)
        charter = found.charter.charter
        member = Member(
            schema=1,
            fleet=charter.fleet,
            device=found.chain[0].device,
            url=url,
            command=charter.command,
            witness=charter.witness,
            since=charter.issued,
            director=charter.director,
        )
        place = Place(schema=1, devices=found.devices, root=found.root.der)
        certificate = client_certificate.to_pem(found.chain)
        return _Joined(member, place, key.pem(), certificate), {}

    return apart.run(work, _Joined)[0]


def leave(home: Home, clock: Clock) -> Member | None:
    """End the membership on this side; returns whose it was, None when its file was damaged.

    The fleet keeps its record of the device until somebody removes it there.

    Raises:
        NotFoundError: this device belongs to no fleet.
        BusyError: a device runs on this home.
        PolicyDeniedError: the fleet has quarantined it: only the fleet's command ends that.

    """
    if not membership.is_member(home):
        raise NotFoundError("this device belongs to no fleet", hint="enrol it: `casemate device enrol URL`")
    with home.lock():
        _require_free(home)
        member = None
        with contextlib.suppress(UntrustedDataError):
            member = membership.read_member(home)
        choice.withdraw(home)
        diary.leave(home, clock.wall())
        membership.forget(home)
        OrdersFile(home).path.unlink(missing_ok=True)
        PickFile(home).forget()
    if member:
        _tell(home, event.fleet_left(fleet=member.fleet, device=member.device, now=clock.wall()))
    return member


def _require_free(home: Home) -> None:
    try:
        state = OrdersFile(home).read().state
    except UntrustedDataError:
        return  # it serves nothing as it is: leaving and joining again is the way out
    if state in {State.QUARANTINED, State.WIPING}:
        raise PolicyDeniedError(
            f"this device is {state.value}: only a command of its fleet ends that",
            hint="ask the fleet's operator to release it",
        )


def _tell(home: Home, happened: event.Event) -> None:
    """Journal it; a home without a keystore has no journal yet. A running device takes up its link."""
    with contextlib.suppress(NotFoundError):
        record(home, happened)
    with contextlib.suppress(NotFoundError, OperationError):
        admin.ask(home.run, "fleet")
