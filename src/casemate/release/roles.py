"""The roles of a repository as one table: who signs what, how many must, for how long, with what kind of key.

Root and targets are offline and 2 of 3. What is published is signed by one short-lived role per kind, which can say
nothing outside its own paths and ends the search (terminating). Snapshot and timestamp are online: they fix what is
current, and can add nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from casemate.errors import UsageError


class Role(NamedTuple):
    """One row. *days* until its metadata expires; *paths* for delegated roles."""

    name: str
    keys: int
    threshold: int
    days: int
    online: bool = False
    paths: tuple[str, ...] = ()


TOP: Final = (
    Role("root", 3, 2, 365),
    Role("targets", 3, 2, 90),
    Role("snapshot", 1, 1, 7, online=True),
    Role("timestamp", 1, 1, 1, online=True),
)
DELEGATED: Final = (
    Role("models", 1, 1, 30, paths=("model/*/*/manifest.json",)),
    Role("policy", 1, 1, 30, paths=("policy/*/*/manifest.json",)),
    Role("engine", 1, 1, 30, paths=("engine/*/*/manifest.json",)),
    Role("apps", 1, 1, 30, paths=("app/*/*/manifest.json",)),
    Role("os", 2, 2, 30, paths=("os/*/*/manifest.json",)),
    Role("channels", 1, 1, 14, paths=("channels/*.json",)),
)
BY_NAME: Final = {role.name: role for role in (*TOP, *DELEGATED)}
OF_KIND: Final = {"model": "models", "policy": "policy", "engine": "engine", "app": "apps", "os": "os"}


def key_names(role: Role) -> list[str]:
    """Return the names of the keys that a new repository makes for *role*."""
    return [f"{role.name}-{number}" for number in range(1, role.keys + 1)]


def role_of_key(name: str) -> str:
    """Return the role that the key *name* signs for.

    Raises:
        UsageError: no role's key is called like that.

    """
    role = name.rpartition("-")[0]
    if role not in BY_NAME and role not in {"authority", "log"}:
        raise UsageError(f"no key is called {name!r}", hint="`casemate release key list DIR` names them")
    return role
