"""Who owns which part of a home, put right: a home from another installation or a backup has other uids, or none."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from casemate.device.home import Home, owner_of

PARTS: Final = {"keystore": "vault", "models": "vault", "apps": "gateway", "journal": "journal"}


def hand_over(home: Home) -> None:
    """Give every part of *home* to the uid of its process (a no-op unless root)."""
    if os.geteuid() != 0:
        return
    for part, role in PARTS.items():
        own(home.path / part, role)
        for folder, folders, names in os.walk(home.path / part):
            for name in (*folders, *names):
                own(Path(folder, name), role)
    own(home.run, "agent")
    lock = home.run / "lock"
    if lock.exists():
        own(lock, "agent")


def own(path: Path, role: str) -> None:
    """Change the owner of a directory or of a regular file with one name; a link is left alone."""
    owner, facts = owner_of(role), path.lstat()
    plain = stat.S_ISDIR(facts.st_mode) or (stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1)
    if owner and plain and (facts.st_uid, facts.st_gid) != (owner.uid, owner.gid):
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
