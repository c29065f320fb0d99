"""Keeping a repository fresh: what expires when, and signing it again in time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

from casemate.errors import UsageError
from casemate.release import roles
from casemate.release.repository import Repository

WARN_DAYS: Final = {"root": 60, "targets": 21, "snapshot": 2, "timestamp": 0}
"""Days left below which a person is told, for roles that differ from a week."""


def refresh(repository: Repository, names: Sequence[str]) -> dict[str, int]:
    """Sign *names*, the snapshot and the timestamp again; return the full days every role has left.

    Raises:
        UsageError: no such role.
        NotAuthorisedError: too few keys are here.

    """
    for name in names:
        if name not in roles.BY_NAME:
            raise UsageError(f"no role is called {name!r}", hint=f"one of {', '.join(roles.BY_NAME)}")
    with repository.lock():
        if "root" in names:
            repository.edit_root(lambda _root: None)
        online = {role.name for role in roles.TOP if role.online}
        repository.edit({name: lambda _targets: None for name in names if name not in {"root", *online}})
    return days_left(repository)


def days_left(repository: Repository) -> dict[str, int]:
    """Return the full days until each role's metadata expires; negative when it has."""
    now = dt.datetime.fromtimestamp(repository.now(), dt.UTC)
    return {name: (repository.load(name).signed.expires - now).days for name in roles.BY_NAME}
