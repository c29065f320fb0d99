"""The engine: one process, one model, no rights. It parses hostile things: weights, prompts, grammars.

It holds a model's plaintext and the prompts of the moment; it has no key, no path, no network and no way to run a
program. `casemate.device.sandbox.spawn` starts it with three inherited sockets; `__main__` tells the order of steps.
"""

from __future__ import annotations

from typing import Final

SUPPLY_FD_VARIABLE: Final = "CASEMATE_SUPPLY_FD"  # one `Weights` frame from the vault
GATEWAY_FD_VARIABLE: Final = "CASEMATE_GATEWAY_FD"  # `Generate` and `Cancel` in, `Chunk`, `Done` and `Failed` out
