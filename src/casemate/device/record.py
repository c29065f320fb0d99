"""Journal an event from a command: through the running device, or straight into the log when none runs."""

from __future__ import annotations

from typing import Any

from casemate.device import admin
from casemate.device.home import Home
from casemate.errors import NotFoundError


def record(home: Home, *events: dict[str, Any]) -> None:
    """Make *events* durable before returning.

    Raises:
        OperationError: the running device refused or cannot write.
        UntrustedDataError: no device runs and the log on disk is damaged.

    """
    try:
        admin.ask(home.run, "record", events=list(events))
    except NotFoundError:
        from casemate.device.journal import append_offline  # noqa: PLC0415 - only when no device runs: start-up time

        append_offline(home, list(events))
