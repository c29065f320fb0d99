"""How much a stored secret is worth, from what the file system says about it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from casemate.crypto.keystore import Assurance

CREDENTIALS: Final = Path("/run/credentials")
"""Where the service manager puts a unit's credentials: only root writes there, from a place of root's."""


def judge_stored_secret(what: str, secret: os.stat_result, where: Path | None, home: Path) -> Assurance:
    """Judge a secret kept in a file: L1 when it has another owner and another directory than the home, else L0.

    *where* is the file's path when it is known. The home's side is its keystore directory: who can read that can
    read the wrapped keys, so a secret of the same owner adds nothing.
    """
    if where is not None and where.is_relative_to(CREDENTIALS):
        return Assurance("L1", (f"the {what} is a credential of the service manager",))
    reasons = []
    kept = (home / "keystore").stat()
    if secret.st_uid == kept.st_uid:
        reasons.append(f"the {what} and the models have the same owner (uid {secret.st_uid})")
    if secret.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        reasons.append(f"others than its owner can read the {what} (mode {stat.S_IMODE(secret.st_mode):o})")
    if where is not None and where.resolve().is_relative_to(home.resolve()):
        reasons.append(f"the {what} lies inside the home")
    if reasons:
        return Assurance("L0", tuple(reasons))
    return Assurance("L1", (f"the {what} has another owner and another directory than the models",))


def path_of(descriptor: int) -> Path | None:
    """Return where an open file lies, or None when it has no place (a pipe)."""
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None
    return path if path.is_absolute() else None
