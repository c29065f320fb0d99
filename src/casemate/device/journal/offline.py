"""Recording what a command did while no device runs. The journal's lock decides: a running device holds it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from casemate.clock import Clock, SystemClock
from casemate.device.home import Home
from casemate.device.journal.writer import JournalWriter
from casemate.errors import ConfigError
from casemate.formats import event

COMMAND_ROLE = "cli"


def open_writer(home: Home, owner_public: str, clock: Clock | None = None) -> JournalWriter:
    """Open the journal of *home* for writing; epoch keys are sealed to *owner_public* (X25519, base64).

    Raises:
        BusyError: a device runs on this home: let its agent record instead.
        UntrustedDataError: the log was altered.
        OperationError: the disk is full or not writable.

    """
    try:
        public = base64.b64decode(owner_public, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("the keystore has no usable owner key", hint="run `casemate keystore status`") from error
    return JournalWriter(home.journal, home_id=home.id, owner_public=public, clock=clock or SystemClock())


def append_offline(home: Home, owner_public: str, events: Sequence[event.Event], clock: Clock | None = None) -> int:
    """Record *events* as a command of the owner; return the index of the last once durable and published.

    Raises:
        BusyError: a device runs on this home: let its agent record instead.
        UntrustedDataError: the log was altered, or one of *events* is not for a command to say.
        OperationError: the disk is full or not writable.

    """
    with open_writer(home, owner_public, clock) as writer:
        return writer.record(events, role=COMMAND_ROLE)
