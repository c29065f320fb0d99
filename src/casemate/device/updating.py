"""A command's update process: forked with few rights, one link to the device, and what the command opened for it.

As root it becomes `casemate-update` before it reads a byte from a network or a medium. On a running device its link is
a connection to the agent, made with the command's rights; else a workshop at the other end has a vault and a journal.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from casemate import keystores
from casemate.config import Settings
from casemate.device import admin, apart, channel, workshop
from casemate.device.fleet import direction, orders
from casemate.device.home import Home, owner_of
from casemate.device.process import drop_privileges, harden
from casemate.device.update import run as actions
from casemate.device.update.desk import Desk, Step
from casemate.device.update.port import Port
from casemate.errors import CasemateError, NotFoundError
from casemate.formats import grant
from casemate.keystores import Sources

Result = dict[str, Any]
_NICE: Final = 10
Work = Callable[[Desk], Result]


class Person(Protocol):
    """How the update process speaks to whoever runs the command."""

    def tell(self, step: Step) -> None:
        """Hear of progress."""
        ...

    def say(self, text: str) -> None:
        """Hear of something that is not the result."""
        ...


def run(
    home: Home, settings: Settings, sources: Callable[[Home], Sources], work: Work, person: Person, *, opens: bool
) -> Result:
    """Do *work* in an update process; *opens*: it needs the vault, also when no device runs.

    Raises:
        CasemateError: as *work*.
        NotAuthorisedError: no device runs and the keystore does not open.
        BusyError: another command or a starting device holds the home.

    """
    home.create()
    found = sources(home)
    recipient = ""
    if keystores.exists(home.keystore):
        recipient = grant.recipient_id(keystores.describe(home, found).owner_public)
    elif opens:
        raise NotFoundError("this device has no keystore yet", hint="make it: `casemate device key show`")

    member, ordered = orders.standing(home) or (None, None)
    directed = direction.standing(home, member, ordered.signed if ordered else 0.0)[1]

    def child(link: socket.socket, *, running: bool) -> Result:
        os.nice(_NICE)  # answers of the running device come first
        drop_privileges(owner_of("update"))
        harden()
        port = Port(link, running=running)
        desk = Desk(home.update, settings, port, recipient, tell=person.tell, say=person.say, standing=directed)
        try:
            return work(desk)
        finally:
            with contextlib.suppress(CasemateError):
                actions.say_where_it_stands(desk)

    with contextlib.ExitStack() as held:
        link = connection(home)
        if link is None:
            return _without_device(home, settings, found, child, held, opens=opens)
        held.enter_context(link)
        return apart.run(lambda: (child(link, running=True), {}), dict)[0]


def connection(home: Home) -> socket.socket | None:
    """Return a link to the running device, where updates ask; None when none runs."""
    for name in (admin.UPDATE_SOCKET, admin.LINKED_UPDATE_SOCKET):
        with contextlib.suppress(NotFoundError):
            return admin.connect(home.run, name)
    return None


def _without_device(
    home: Home,
    settings: Settings,
    sources: Sources,
    child: Callable[..., Result],
    held: contextlib.ExitStack,
    *,
    opens: bool,
) -> Result:
    ours, theirs = channel.pair()
    held.enter_context(ours)
    held.enter_context(theirs)
    if not opens:
        ours.close()
        return apart.run(lambda: (child(theirs, running=False), {}), dict)[0]
    held.enter_context(home.lock())
    public, unlock = apart.run(lambda: (_owner_public(home, sources), sources.descriptors()), str)
    try:
        make = held.enter_context(workshop.opened(home, settings, public, unlock))
    finally:
        for fd in unlock.values():
            os.close(fd)
    shop = make(ours)

    def work() -> tuple[Result, dict[str, int]]:
        shop.abandon()  # what reads hostile data has no link to the vault itself
        return child(theirs, running=False), {}

    def meanwhile() -> None:
        theirs.close()
        shop.serve()

    return apart.run(work, dict, meanwhile)[0]


def _owner_public(home: Home, sources: Sources) -> str:
    return base64.b64encode(keystores.describe(home, sources).owner_public).decode()
