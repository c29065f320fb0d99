"""Root's way into the sandbox: make the interpreter reachable, drop to the engine's uid, become bubblewrap.

The interpreter may live where the engine's uid may not look (`/root` is 0700). In a mount namespace of its own this
stage binds each of its directories under a fresh tmpfs that everyone may traverse, then gives up root for good.
Bubblewrap runs as an ordinary user from its first instruction.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from casemate.device.sandbox import mounts
from casemate.device.sandbox.plan import SandboxPlan, bubblewrap_command, interpreter_trees
from casemate.errors import HostError

_STAGES: Final = ("/run", "/tmp", "/mnt")  # noqa: S108 - covered by a fresh tmpfs in this process's own namespace


def main(arguments: Sequence[str]) -> NoReturn:
    """Carry out one order (JSON of a `SandboxPlan` and the path of bubblewrap); never returns."""
    order: dict[str, Any] = json.loads(arguments[0])
    bwrap = order.pop("bwrap")
    plan = SandboxPlan(**{**order, "arguments": tuple(order["arguments"])})
    if not plan.uid or not plan.gid:
        sys.exit("no identity to drop to")
    trees = expose(interpreter_trees())
    command = bubblewrap_command(plan, bwrap, trees)  # it follows links that only root may see
    allow_locking()
    drop(plan.uid, plan.gid)
    os.execv(command[0], command)  # noqa: S606 - a list, no shell; the sandbox is what we become


def expose(trees: Sequence[str]) -> dict[str, str]:
    """Bind *trees* where any uid can reach them, in a private mount namespace; map each to its new place."""
    os.umask(0o022)  # the parent's may be tighter; these directories are for another uid
    mounts.private_mounts()
    held = [os.open(tree, os.O_PATH | os.O_CLOEXEC) for tree in trees]  # before the tmpfs may cover one of them
    stage = next(path for path in _STAGES if Path(path).is_dir())
    mounts.mount("tmpfs", stage, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=0755,size=64k")
    places = {}
    for index, (tree, fd) in enumerate(zip(trees, held, strict=True)):
        place = f"{stage}/{index}"
        Path(place).mkdir(mode=0o755)
        mounts.mount(f"/proc/self/fd/{fd}", place, None, mounts.MS_BIND | mounts.MS_REC)
        os.close(fd)
        places[tree] = place
    return places


def allow_locking() -> None:
    """Let the engine keep the weights out of swap: only root may raise that limit, and not every root."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        pass  # the engine says in its facts whether the weights are locked


def drop(uid: int, gid: int) -> None:
    """Become *uid*:*gid* with no other group and no capability."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HostError as error:
        sys.exit(f"sandbox: {error.message} ({error.hint})")
