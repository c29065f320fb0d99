"""Whether a device ever took trust or an update: then whatever is missing was taken away, and is never "nothing yet".

The key of the floors is no trace: alone it is a first trust that was cut off. Who removes every trace, or puts back a
whole older disk, has a device of then; what stops that is not in files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

NAMES: Final = ("trust.json", "floors", "state", "state.key", "gen")


def has_any(directory: Path) -> bool:
    """Return whether *directory*, a home's `update/`, shows that there was trust or an update."""
    return any(os.path.lexists(directory / name) for name in NAMES)
