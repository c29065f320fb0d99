"""The sandbox of the engine: namespaces by bubblewrap, Landlock, two seccomp filters, limits. Standard library only.

`spawn` starts a module inside the namespaces; that module calls `enter_load`, and later `enter_run` on what it got.
No layer is optional: what is missing is named in a `HostError` (exit 12) with the fix. See docs/reference/sandbox.md.
"""

from __future__ import annotations

from casemate.device.sandbox.host import missing_layers, require_layers
from casemate.device.sandbox.limits import Confined, Limits, enter_load, lower_memory
from casemate.device.sandbox.plan import SandboxPlan, engine_command, spawn

__all__ = [
    "Confined",
    "Limits",
    "SandboxPlan",
    "engine_command",
    "enter_load",
    "lower_memory",
    "missing_layers",
    "require_layers",
    "spawn",
]
