"""The update process that a starting device runs once: it judges the trial that this start is, and ends soaks."""

from __future__ import annotations

import socket
import sys

from casemate.config import Settings
from casemate.device.process import boot
from casemate.device.update import run
from casemate.device.update.desk import Desk
from casemate.device.update.port import Port
from casemate.errors import CasemateError


def main() -> None:
    """Settle, say what came of it, end."""
    child = boot("update")
    port = Port(socket.socket(fileno=child.fds["agent"]), running=True)
    values = child.settings["settings"]
    desk = Desk(child.home / "update", Settings(values, {}), port, recipient="", say=_say)
    try:
        run.settle(desk)
    except CasemateError as error:
        _say(error.message)
        sys.exit(error.exit_code)


def _say(text: str) -> None:
    sys.stderr.write(f"update: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
