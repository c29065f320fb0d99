"""Where the device's processes come from: the agent starts them itself, or each is a unit of its own (`units_link`)."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final, Protocol

from casemate.device import sandbox
from casemate.device.children import Launcher, own_launcher, start_python
from casemate.device.home import owner_of
from casemate.device.process import CONTROL_FD_VARIABLE

ENGINE_LINKS: Final = (CONTROL_FD_VARIABLE, "CASEMATE_GATEWAY_FD", "CASEMATE_SUPPLY_FD")
"""An engine's descriptors, in the order a launcher gets them, by the variable that tells the engine their number."""


class Launchers(Protocol):
    """One way to get a process for each job."""

    beside: bool
    """Whether a model can have a second engine while the first still runs."""

    def core(self, role: str) -> Launcher:
        """Return the launcher of `python -m casemate.device.<role>`."""
        ...

    async def fence(self, gate: bytes) -> str:
        """Cut the network down to *gate* (JSON of `fleet.fence.Gate`), or (null) open it; returns why not, or ""."""
        ...

    async def shred_keyfile(self) -> bool:
        """Destroy the key file that opens the keystore; false when it is not in reach, or there is none."""
        ...

    def engine(self, model: str, *, replay: bool) -> Launcher:
        """Return the launcher of *model*'s engine, which plays a recorded stream when *replay*."""
        ...


def start_engine(links: Sequence[int], *, replay: bool) -> subprocess.Popen[bytes]:
    """Start an engine inside the sandbox, as its own uid when root starts it; *links* as in `ENGINE_LINKS`."""
    owner = owner_of("engine")
    plan = sandbox.SandboxPlan(
        module="casemate.device.replay" if replay else "casemate.device.engine",
        fds=dict(zip(ENGINE_LINKS, links, strict=True)),
        uid=owner.uid if owner else None,
        gid=owner.gid if owner else None,
    )
    return sandbox.spawn(plan)


class OwnLaunchers:
    """`casemate up` by an ordinary user: every process is a child of the agent, and has its uid."""

    beside = True

    async def fence(self, gate: bytes) -> str:
        """Say no: a user's rights end before the network's filter."""
        return "" if gate == b"null" else "only a device that root started can fence its network"

    async def shred_keyfile(self) -> bool:
        """Leave it to the process that destroys the rest, which has the same rights."""
        return False

    def core(self, role: str) -> Launcher:
        """Start a Python process."""
        return own_launcher(lambda fds: start_python(role, None, fds[0]))

    def engine(self, model: str, *, replay: bool) -> Launcher:
        """Start an engine inside the sandbox."""
        del model
        return own_launcher(lambda fds: start_engine(fds, replay=replay))
