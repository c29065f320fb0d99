"""Where the device's processes come from: the agent starts them itself, or each is a unit of its own (`units_link`)."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final, Protocol

from casemate.device import sandbox
from casemate.device.children import Launcher, child_environment, own_launcher, python_launcher
from casemate.device.home import owner_of
from casemate.device.process import CONTROL_FD_VARIABLE

ENGINE_LINKS: Final = (CONTROL_FD_VARIABLE, "CASEMATE_GATEWAY_FD", "CASEMATE_SUPPLY_FD")
"""An engine's descriptors, in the order a launcher gets them, by the variable that tells the engine their number."""


class Launchers(Protocol):
    """One way to get a process for each job."""

    def core(self, role: str) -> Launcher:
        """Return the launcher of `python -m casemate.device.<role>`."""
        ...

    def engine(self, model: str, *, replay: bool) -> Launcher:
        """Return the launcher of *model*'s engine, which plays a recorded stream when *replay*."""
        ...


class OwnLaunchers:
    """`casemate up`: every process is a child of the agent."""

    def core(self, role: str) -> Launcher:
        """Start a Python process."""
        return python_launcher(role, child_environment())

    def engine(self, model: str, *, replay: bool) -> Launcher:
        """Start an engine inside the sandbox."""
        del model
        owner = owner_of("engine")

        def spawn(fds: Sequence[int]) -> subprocess.Popen[bytes]:
            plan = sandbox.SandboxPlan(
                module="casemate.device.replay" if replay else "casemate.device.engine",
                fds=dict(zip(ENGINE_LINKS, fds, strict=True)),
                uid=owner.uid if owner else None,
                gid=owner.gid if owner else None,
            )
            return sandbox.spawn(plan)

        return own_launcher(spawn)
