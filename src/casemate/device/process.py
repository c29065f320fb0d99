"""How a device process begins: say hello, take its orders, give up every right it does not need, then open things.

Everything is imported before `boot` returns, and nothing is opened before it: privileges drop between the two. Each
process dies with the agent (parent-death signal and end of file on the control link), cannot be dumped or traced by
its own uid, leaves no core, and ignores Ctrl-C (the agent decides when to stop).
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from casemate.device.channel import Channel, ChannelClosed
from casemate.device.home import Owner
from casemate.device.sandbox import mounts
from casemate.device.sandbox.plan import interpreter_trees
from casemate.errors import CasemateError, UntrustedDataError
from casemate.formats import ipc

CONTROL_FD_VARIABLE: Final = "CASEMATE_CONTROL_FD"
HELD_FDS_VARIABLE: Final = "CASEMATE_HELD_FDS"
"""Descriptors a process brings along from its unit, as `name=number,...`: what the agent has no right to hold."""
IDENTITY_VARIABLE: Final = "CASEMATE_IDENTITY"
"""uid:gid that a process started by root drops to before it opens anything."""
START_TIMEOUT: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True)
class Child:
    """A process that has booted: its link to the agent, its home, settings and descriptors by name."""

    role: str
    control: Channel
    home: Path
    settings: dict[str, Any]
    fds: dict[str, int]

    def ready(self, **facts: Any) -> None:
        """Tell the agent that this process serves; *facts* appear in `casemate status`."""
        self.control.send(ipc.Ready(facts=facts))

    def fatal(self, error: CasemateError, *, transient: bool = False) -> NoReturn:
        """Report *error* and exit at once (native threads may not be joined)."""
        try:
            self.control.send(fatal_message(error, transient=transient))
        except (ChannelClosed, OSError):
            pass  # nobody is left to hear it
        sys.stderr.flush()
        os._exit(error.exit_code)


def fatal_message(error: CasemateError, *, transient: bool = False) -> ipc.Fatal:
    """Return *error* as the message the agent understands."""
    return ipc.Fatal(
        code=error.code,
        message=error.message,
        hint=error.hint,
        exit_code=error.exit_code,
        check=error.check if isinstance(error, UntrustedDataError) else "",
        transient=transient,
    )


def boot(role: str) -> Child:
    """Say hello as *role*, wait for `Start`, drop privileges, return what was handed over.

    Exits when the agent is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    identity = _identity()
    sock = socket.socket(fileno=int(os.environ.pop(CONTROL_FD_VARIABLE)))
    sock.set_inheritable(False)
    control = Channel(sock, ipc.AgentToChild)
    try:
        control.send(ipc.Hello(role=role, pid=os.getpid()))
        start, fds = control.recv(START_TIMEOUT)
    except (ChannelClosed, TimeoutError, UntrustedDataError):
        os._exit(1)
    if not isinstance(start, ipc.Start):
        os._exit(1)
    try:
        drop_privileges(identity)
    except CasemateError as error:
        control.send(fatal_message(error))
        os._exit(error.exit_code)
    harden()
    return Child(role, control, Path(start.home), start.settings, {**_held(), **dict(zip(start.fds, fds, strict=True))})


def _held() -> dict[str, int]:
    rows = [row.partition("=") for row in os.environ.pop(HELD_FDS_VARIABLE, "").split(",") if row]
    for _, _, number in rows:
        os.set_inheritable(int(number), False)
    return {name: int(number) for name, _, number in rows}


def _identity() -> Owner | None:
    """Return who to become: whoever started this process decides, never a message."""
    text = os.environ.pop(IDENTITY_VARIABLE, "")
    uid, _, gid = text.partition(":")
    return Owner(int(uid), int(gid)) if text else None


def drop_privileges(identity: Owner | None) -> None:
    """Become *identity* for good, with no supplementary groups and no capability left. None: stay who we are.

    The code stays readable: a module that is imported late must not depend on root's rights.

    Raises:
        HostError: the code lies where that uid may not look, and it cannot be shown to it.

    """
    if identity is None:
        return
    if os.geteuid() == 0:
        mounts.open_to_everyone(interpreter_trees())
    os.setgroups([])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)


def harden() -> None:
    """Set the limits every process keeps for life. After `drop_privileges`: a uid change clears some of them."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.environ.get("CASEMATE_PARENT", "") not in {"", str(os.getppid())}:
        os._exit(1)  # the parent died before the signal was armed, and we fell to somebody else
