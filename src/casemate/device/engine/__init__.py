"""The engine: one process, one model, no rights. It parses hostile things: weights, prompts, grammars.

It holds a model's plaintext and the prompts of the moment; it has no key, no path, no network and no way to run a
program. `spawn(plan(...))` from `casemate.device.sandbox` starts it; `__main__` tells the order of its steps.
"""

from __future__ import annotations

from typing import Final

from casemate.device.sandbox.plan import SandboxPlan

CONTROL_FD_VARIABLE: Final = "CASEMATE_CONTROL_FD"
SUPPLY_FD_VARIABLE: Final = "CASEMATE_SUPPLY_FD"
GATEWAY_FD_VARIABLE: Final = "CASEMATE_GATEWAY_FD"

ENGINE: Final = "casemate.device.engine"
REPLAY: Final = "casemate.device.replay"


def plan(
    *, control: int, gateway: int, supply: int | None, uid: int | None, gid: int | None, module: str = ENGINE
) -> SandboxPlan:
    """Return how to start an engine (or, with *module*, the replay, which has no *supply*).

    *control* leads to the agent, *supply* to the vault (one `Weights` frame), *gateway* to the gateway; each is one
    end of a socket pair, closed by the caller once the process is spawned. *uid* and *gid* are for root, else None.
    """
    fds = {CONTROL_FD_VARIABLE: control, GATEWAY_FD_VARIABLE: gateway}
    if supply is not None:
        fds[SUPPLY_FD_VARIABLE] = supply
    return SandboxPlan(module=module, fds=fds, uid=uid, gid=gid)
