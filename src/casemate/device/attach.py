"""`python -m casemate.device.attach ROLE [MODEL]`: how a process that is a unit of its own joins the device.

    1  connect to the agent's link socket (the agent may still be starting) and say who we are; the kernel vouches
    2  wait until the agent wants this process: it decides when, after a crash it waits longer each time
    3  hold the leash: the kernel kills this process when the agent pulls it, or dies
    4  become the ordinary process, the connection being its control link; an engine in a pid namespace of its own

The agent never gets what the vault unlocks with: the vault brings it along from its unit's credentials.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from casemate.config import home_path
from casemate.device.admin import short_path
from casemate.device.channel import Channel, ChannelClosed
from casemate.device.children import child_environment
from casemate.device.home import Home
from casemate.device.launch import ENGINE_LINKS
from casemate.device.process import CONTROL_FD_VARIABLE, HELD_FDS_VARIABLE
from casemate.device.sandbox.plan import INSIDE_ID
from casemate.errors import CasemateError, NotFoundError
from casemate.formats import ipc

LINK_SOCKET: Final = "link/agent.sock"  # in the home's run directory
AGENT_WITHIN: Final = 60.0
_RETRY: Final = 0.25
LEASH: Final = "leash"
_CLONE_NEWUSER: Final = 0x1000_0000
_CLONE_NEWPID: Final = 0x2000_0000
_CAPABILITIES: Final = 64
_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: Sequence[str]) -> NoReturn:
    """Join as ROLE (of MODEL) and become it; exits 1 when there is no agent to join."""
    role, model = arguments[0], arguments[1] if len(arguments) > 1 else ""
    home = Home(home_path())
    signal.signal(signal.SIGCONT, lambda *_: os._exit(0))  # the unit is stopped: nobody is going to want us
    try:
        link, fds = join(home, role, model)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # from now on the agent decides when we end
    except (CasemateError, ChannelClosed) as error:
        sys.exit(f"casemate {role}: {getattr(error, 'message', 'the agent closed the link')}")
    leash = fds.pop(LEASH)
    hold(leash)
    if role == "engine":
        become_engine(link, fds)
    os.set_inheritable(leash, True)  # the kernel watches it for as long as it is open
    become(role, link, held=unlocking(home) if role == "vault" else {})


def join(home: Home, role: str, model: str = "") -> tuple[socket.socket, dict[str, int]]:
    """Offer this process to the agent of *home*; returns when it is wanted, with what the agent sent along.

    Raises:
        NotFoundError: no agent listens.
        ChannelClosed: the agent did not take us: another uid than the role's, or it stopped.
        UntrustedDataError: something else answered.

    """
    link = _connect(home.run / LINK_SOCKET)
    channel = Channel(link, ipc.FromLink)
    channel.send(ipc.Join(role=role, model=model))
    joined, fds = channel.recv()
    return link, dict(zip(joined.fds, fds, strict=True))


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + AGENT_WITHIN
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with short_path(path) as name:
                sock.connect(name)
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline:
                raise NotFoundError(f"no agent listens at {path}: {error.strerror}") from error
            time.sleep(_RETRY)
        else:
            return sock


def hold(leash: int) -> None:
    """Have the kernel kill this process (also after exec) when something comes over *leash* or its other end closes.

    The agent may not signal another uid. A parent-death signal would name the service manager, not the agent.
    """
    fcntl.fcntl(leash, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(leash, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(leash, fcntl.F_SETFL, fcntl.fcntl(leash, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([leash], [], [], 0)[0]:  # pulled before the kernel watched
        os.kill(os.getpid(), signal.SIGKILL)


def unlocking(home: Home, environ: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Open what the unit's credentials hold for the keystore: a passphrase, this home's key file, or both."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return {}
    names = {"passphrase": "casemate-passphrase", "keyfile": f"casemate-keys_{home.id}.key"}
    found = {name: Path(directory) / file for name, file in names.items()}
    return {name: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for name, path in found.items() if path.exists()}


def become(role: str, link: socket.socket, *, held: Mapping[str, int]) -> NoReturn:
    """Turn into `python -m casemate.device.<role>`, with *link* as control link and the descriptors *held*."""
    for fd in (link.fileno(), *held.values()):
        os.set_inheritable(fd, True)
    environment = {**child_environment(), CONTROL_FD_VARIABLE: str(link.fileno())}
    if held:
        environment[HELD_FDS_VARIABLE] = ",".join(f"{name}={fd}" for name, fd in held.items())
    command = [sys.executable, "-P", "-m", f"casemate.device.{role}"]
    os.execve(sys.executable, command, environment)  # noqa: S606 - a list


def become_engine(link: socket.socket, fds: Mapping[str, int]) -> NoReturn:
    """Run the engine as the first process of a pid namespace, and end as it ends.

    The unit built every other namespace. This process stays as the engine's parent: it holds the leash, which the
    engine does not get, and nothing else.
    """
    numbers = (link.fileno(), fds["gateway"], fds["supply"])
    fence()
    engine = os.fork()
    if engine == 0:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in numbers:
            os.set_inheritable(number, True)
        links = dict(zip(ENGINE_LINKS, map(str, numbers), strict=True))
        command = [sys.executable, "-I", "-m", "casemate.device.engine"]
        environment = {"PATH": "/usr/bin", "GGML_NO_BACKTRACE": "1", **links}
        os.execve(sys.executable, command, environment)  # noqa: S606 - a list
    for number in numbers:
        os.close(number)
    _, status = os.waitpid(engine, 0)
    _end_as(status)


def fence() -> None:
    """Enter a user namespace, with no capability to regain, and have the next child start a pid namespace in it."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID) != 0:
        sys.exit(f"casemate engine: unshare: {os.strerror(ctypes.get_errno())}")
    rows = {"setgroups": "deny", "uid_map": f"{INSIDE_ID} {uid} 1", "gid_map": f"{INSIDE_ID} {gid} 1"}
    for name, text in rows.items():
        Path("/proc/self", name).write_text(text, encoding="ascii")
    for capability in range(_CAPABILITIES):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # one the kernel does not know is not there to drop


def _end_as(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
