"""The journal process: `python -m casemate.device.journal`, started by the agent."""

from __future__ import annotations

import base64
import binascii

from casemate.clock import SystemClock
from casemate.device.journal.server import CLIENT_PREFIX, JournalServer
from casemate.device.journal.writer import JournalWriter
from casemate.device.process import Child, boot
from casemate.errors import BusyError, CasemateError, ConfigError, OperationError


def main() -> None:
    """Open the log, serve, close it."""
    child = boot("journal")
    clock = SystemClock()
    try:
        writer = JournalWriter(
            child.home / "journal",
            home_id=str(child.settings["origin_id"]),
            owner_public=_owner_public(child),
            clock=clock,
        )
    except BusyError as error:
        child.fatal(error, transient=True)  # a command is writing a record of its own: gone in a moment
    except CasemateError as error:
        child.fatal(error)
    try:
        with writer:
            server = JournalServer(writer, child.control, clock)
            for name, fd in child.fds.items():
                server.attach(name.removeprefix(CLIENT_PREFIX), fd)
            child.ready(size=writer.size, epoch=writer.epoch, origin=writer.origin)
            server.serve()
    except CasemateError as error:
        child.fatal(error, transient=isinstance(error, OperationError))


def _owner_public(child: Child) -> bytes:
    try:
        return base64.b64decode(str(child.settings["owner_public"]), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("the keystore has no usable owner key", hint="run `casemate keystore status`") from error


if __name__ == "__main__":
    main()
