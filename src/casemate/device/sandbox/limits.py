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
from casemate.errors import OperationError

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
        HostError: the host lacks Landlock or libseccomp.
        OperationError: a layer was refused, or another thread already runs and would escape Landlock.

    """
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise OperationError("a thread started before the sandbox: Landlock would not hold it")
    load_filter, run_filter = seccomp.build(seccomp.LOAD), seccomp.build(seccomp.RUN)  # while libseccomp can be read
    cap(limits)
    abi = landlock.restrict([PRIVATE_DIRECTORY])
    load_filter.load()
    return Confined(run_filter, {"landlock_abi": abi, "seccomp_skipped": run_filter.skipped})


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
    _lower(resource.RLIMIT_AS, limits.memory)


def _lower(which: int, ceiling: int) -> None:
    """Lower a limit for good (never raise it)."""
    _, hard = resource.getrlimit(which)
    value = ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard)
    resource.setrlimit(which, (value, value))
