"""What `casemate-update.service` does each time: judge a trial, end a soak, look, fetch, apply."""

from __future__ import annotations

import base64
import contextlib
import sys

from casemate.config import Settings
from casemate.device import updating
from casemate.device.home import Home
from casemate.device.update import run
from casemate.device.update.desk import Desk
from casemate.device.update.pace import NotNowError
from casemate.device.update.port import Port
from casemate.errors import CasemateError, NotFoundError, OperationError
from casemate.formats import grant


def take_updates(home: Home, settings: Settings) -> int:
    """Do it; returns the exit code of the unit. Nothing to do yet is no failure.

    Raises:
        CasemateError: as `run.tick`.

    """
    link = updating.connection(home)
    if link is None:
        raise OperationError("the agent does not run", hint="systemctl start casemate.target")
    port = Port(link, running=True)
    owner = base64.b64decode(port.status()["owner"], validate=True)
    desk = Desk(home.update, settings, port, grant.recipient_id(owner), say=_say)
    try:
        done = run.follow(desk)
    except (NotNowError, NotFoundError) as error:
        _say(error.message)
        return 0
    finally:
        with contextlib.suppress(CasemateError):
            run.say_where_it_stands(desk)
    _say(f"generation {done['generation']} is {done['state'].lower()}")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
