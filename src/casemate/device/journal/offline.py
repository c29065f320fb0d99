"""Recording what a command did while no device runs. The journal's lock decides: a running device holds it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Final

from casemate.clock import Clock, SystemClock
from casemate.device.home import Home
from casemate.device.journal.writer import JournalWriter
from casemate.device.ownership import rights_of_owner
from casemate.errors import BusyError
from casemate.formats import event

COMMAND_ROLE: Final = "cli"
_PATIENCE: Final = 5.0
_PAUSE: Final = 0.05


@contextlib.contextmanager
def open_writer(home: Home, clock: Clock | None = None) -> Iterator[JournalWriter]:
    """Hold the journal of *home* for writing; its epoch's key is sealed to the owner named in the keystore.

    Root writes here as the journal's uid.

    Raises:
        NotFoundError: the home has no keystore, so nobody could ever read the log.
        BusyError: a device runs on this home: let its agent record instead.
        UntrustedDataError: the log was altered.
        OperationError: the disk is full or not writable.

    """
    from casemate import keystores  # noqa: PLC0415 - the journal process imports this package and must not load these

    owner = keystores.read_document(home).owner_public
    with rights_of_owner(home.journal), _patiently(home, owner, clock or SystemClock()) as writer:
        yield writer


def _patiently(home: Home, owner: bytes, clock: Clock) -> JournalWriter:
    until = clock.monotonic() + _PATIENCE
    while True:
        try:
            return JournalWriter(home.journal, home_id=home.id, owner_public=owner, clock=clock)
        except BusyError:
            if clock.monotonic() >= until:
                raise
        time.sleep(_PAUSE)  # another command records just now


def append_offline(home: Home, events: Sequence[event.Event], clock: Clock | None = None) -> int:
    """Record *events* as a command of the owner; return the index of the last once durable and published.

    Raises:
        NotFoundError: the home has no keystore.
        BusyError: a device runs on this home: let its agent record instead.
        UntrustedDataError: the log was altered, or one of *events* is not for a command to say.
        OperationError: the disk is full or not writable.

    """
    with open_writer(home, clock) as writer:
        return writer.record(events, role=COMMAND_ROLE)
