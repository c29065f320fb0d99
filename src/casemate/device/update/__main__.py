"""The update process that the agent runs: at a start it judges the trial that this is, later it follows the fleet."""

from __future__ import annotations

import base64
import contextlib
import socket
import sys

from casemate.config import Settings
from casemate.device.process import boot
from casemate.device.update import run
from casemate.device.update.desk import Desk
from casemate.device.update.port import Port
from casemate.errors import CasemateError
from casemate.formats import grant


def main() -> None:
    """Settle, say what came of it, end."""
    child = boot("update")
    port = Port(socket.socket(fileno=child.fds["agent"]), running=True)
    values = child.settings["settings"]
    recipient = grant.recipient_id(base64.b64decode(child.settings["owner"], validate=True))
    desk = Desk(child.home / "update", Settings(values, {}), port, recipient, say=_say)
    code = 0
    try:
        (run.follow if child.settings["follow"] else run.settle)(desk)
    except CasemateError as error:
        _say(error.message)
        code = error.exit_code
    with contextlib.suppress(CasemateError):
        run.say_where_it_stands(desk)
    sys.exit(code)


def _say(text: str) -> None:
    sys.stderr.write(f"update: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
