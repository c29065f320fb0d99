"""What a sandboxed process does to itself, in order: identity marks, limits, Landlock, the load filter, the run filter.

Call `enter_load` when everything is imported and before any hostile byte is parsed, `enter_run` when the model is
loaded and before the first request. Both refuse to go on when a layer is missing.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import resource
from pathlib import Path
from typing import Any, Final

from casemate.device.sandbox import landlock, seccomp
from casemate.device.sandbox.plan import INSIDE_ID
from casemate.errors import HostError, OperationError

PRIVATE_DIRECTORY: Final = "/tmp"  # noqa: S108 - the sandbox's own small tmpfs, not the host's
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Ceilings for one engine: *memory* bytes of address space, *tasks* threads."""

    memory: int
    tasks: int


class Confined:
    """A process under the load filter; `enter_run` takes the rest away."""

    def __init__(self, run_filter: seccomp.Filter, facts: dict[str, Any]) -> None:
        """Hold the filter for the next stage and the *facts* about what is in force."""
        self._run_filter = run_filter
        self.facts = facts

    def enter_run(self) -> None:
        """Lay the run filter over every thread there is now or will be."""
        self._run_filter.load()


def enter_load(limits: Limits) -> Confined:
    """Take everything away that loading a model does not need.

    Raises:
        HostError: the host lacks Landlock or libseccomp, or this is not inside bubblewrap's namespaces.
        OperationError: a layer was refused, or another thread already runs and would escape Landlock.

    """
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise OperationError("a thread started before the sandbox: Landlock would not hold it")
    _verify_namespaces()
    load_filter, run_filter = seccomp.build(seccomp.LOAD), seccomp.build(seccomp.RUN)  # while libseccomp can be read
    cap(limits)
    _let_go_of_the_log()
    abi = landlock.restrict([PRIVATE_DIRECTORY])
    load_filter.load()
    layers = ["namespaces", "rlimits", "no-new-privileges", f"landlock-{abi}", "seccomp-load", "seccomp-run"]
    return Confined(run_filter, {"layers": layers, "landlock_abi": abi, "seccomp_skipped": run_filter.skipped})


def _let_go_of_the_log() -> None:
    """Point standard error at nothing: an engine that is taken over must not write to a terminal or fill a log.

    Until here it carried what goes wrong at start; from here on a failure travels over the control link.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _verify_namespaces() -> None:
    """Refuse to run outside the namespaces of bubblewrap or of a unit: a wrong start must not go unseen."""
    rows = Path("/proc/self/net/dev").read_text("ascii").splitlines()[2:]  # not by netlink: a unit may forbid it
    devices = {row.partition(":")[0].strip() for row in rows}
    identities = Path("/proc/self/uid_map").read_text("ascii").split()
    if devices - {"lo"} or identities[2:] != ["1"] or os.getuid() != INSIDE_ID:
        raise HostError("not inside the sandbox's namespaces", hint="start engines with casemate.device.sandbox.spawn")


def cap(limits: Limits) -> None:
    """Set the marks and ceilings that last for life: no new privileges, not dumpable, no core, few tasks and bytes.

    Raises:
        OperationError: one was refused.

    """
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if _libc.prctl(option, value, 0, 0, 0) != 0:
            raise OperationError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NPROC, limits.tasks)
    lower_memory(limits.memory)


def lower_memory(ceiling: int) -> None:
    """Lower the address space this process may use to *ceiling* bytes, for good."""
    _lower(resource.RLIMIT_AS, ceiling)


def _lower(which: int, ceiling: int) -> None:
    """Lower a limit for good (never raise it)."""
    _, hard = resource.getrlimit(which)
    value = ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard)
    resource.setrlimit(which, (value, value))
