"""The owner's word on usage reports: `casemate usage on` or `off`, else the setting `telemetry.usage`, else no.

No fleet can change it: there is no command for it. Leaving a fleet ends what was typed for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from casemate.device.home import Home, owner_of, write_atomic

FILE: Final = "usage-choice.json"
_LIMIT: Final = 4096


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was typed last, and when."""

    schema: Literal[1]
    on: bool
    since: int


def is_on(home: Home, setting: bool) -> bool:  # noqa: FBT001 - the value of a setting
    """Whether this device may count and report; *setting* is `telemetry.usage`. What cannot be read is a no."""
    try:
        with path_of(home).open("rb") as file:
            return msgspec.json.decode(file.read(_LIMIT), type=Choice).on
    except FileNotFoundError:
        return setting
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False


def choose(home: Home, on: bool, now: float) -> None:  # noqa: FBT001 - the value itself
    """Make the owner's word durable.

    Raises:
        OperationError: the disk is full or read-only; the word before holds.

    """
    choice = Choice(1, on, max(0, int(now)))
    write_atomic(path_of(home), msgspec.json.encode(choice), owner=owner_of("agent"))


def withdraw(home: Home) -> None:
    """Forget what was typed: a yes was given to one fleet, and the device leaves it."""
    path_of(home).unlink(missing_ok=True)


def path_of(home: Home) -> Path:
    """Return where it is kept."""
    return home.fleet / FILE
