"""Asking for a fence where every process is a unit: the agent has no right to the network's filter, one unit has.

    fleet/fence.json            agent   what is wanted: a gate, or null
    /run/casemate-fence/done    root    SHA-256 of what is in force, and what went wrong

`casemate-fence.path` starts `casemate-fence.service` when the first file changes, and the service runs before the
network is up at every boot: a device that reboots in quarantine never has an open network. It believes nothing but an
address and a port.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Annotated, Final

import msgspec

from casemate.device.fleet import fence
from casemate.device.home import Home, owner_of, write_atomic
from casemate.errors import CasemateError, OperationError

WANTED: Final = "fence.json"
DONE: Final = Path("/run/casemate-fence/done")
_LIMIT: Final = 4096
_WITHIN: Final = 5.0
_POLL: Final = 0.05


class Done(msgspec.Struct, frozen=True):
    """What the unit did about the wanted state with this digest; *why*: why it is not in force."""

    sha256: str
    why: Annotated[str, msgspec.Meta(max_length=400)] = ""


async def ask_for_fence(fleet: Path, gate: bytes, done: Path = DONE) -> str:
    """Write *gate* where the unit looks and wait for it; returns why it is not in force, or nothing."""
    wanted = hashlib.sha256(gate).hexdigest()
    write_atomic(fleet / WANTED, gate, owner=owner_of("agent"))
    deadline = asyncio.get_running_loop().time() + _WITHIN
    while asyncio.get_running_loop().time() < deadline:
        found = _read_done(done)
        if found and found.sha256 == wanted:
            return found.why
        await asyncio.sleep(_POLL)
    return "casemate-fence.service did not answer: see `systemctl status casemate-fence`"


def _read_done(path: Path) -> Done | None:
    try:
        return msgspec.json.decode(path.read_bytes()[:_LIMIT], type=Done)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def enforce(home: Home, done: Path = DONE) -> str:
    """Bring the fence into the wanted state, as the unit; returns why that could not be done, or nothing.

    A file that is damaged is a fence with no gate: nothing passes until it is whole again. None: nothing is changed.

    Raises:
        OperationError: the outcome cannot be written.

    """
    data = _read_wanted(home.fleet / WANTED)
    if data is None:
        return ""
    why = ""
    try:
        gate = fence.parse_gate(data)
    except CasemateError as error:
        gate, why = fence.Gate(), error.message
    try:
        fence.take_down() if gate is None else fence.put_up(gate)
    except CasemateError as error:
        why = error.message
    write_atomic(done, msgspec.json.encode(Done(hashlib.sha256(data).hexdigest(), why[:400])), mode=0o644)
    return why


def _read_wanted(path: Path) -> bytes | None:
    """Read what the agent wrote; a link or a pipe in its place leads nowhere."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperationError(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        return file.read(_LIMIT + 1)
