"""What an installation writes and runs, decided before anything is touched; pure but for looking at the interpreter."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from casemate.device.sandbox.plan import interpreter_trees
from casemate.device.service import render
from casemate.device.service.render import Place
from casemate.errors import ConfigError

MANIFEST: Final = "/etc/casemate/service-manifest.json"
IMAGE_PREFIX: Final = "/opt/casemate"
SCHEMA: Final = 1
_PRIVATE_PLACES: Final = ("/home", "/root", "/run/user")  # ProtectHome= hides them from every unit
START: Final = ("systemctl", "start", "casemate.target")
STOP: Final = ("systemctl", "stop", "casemate.target", "casemate-*.service")
"""The target alone would not wait for its units."""
RELOAD: Final = ("systemctl", "daemon-reload")
_SYSTEMCTL_AFTER: Final = (RELOAD, START)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Files and links by absolute path on the target, and the commands a live installation runs after them."""

    place: Place
    files: dict[str, str]
    links: dict[str, str]
    users: tuple[tuple[str, ...], ...] = ()
    """Commands that make users and directories, before the home is prepared."""
    start: tuple[tuple[str, ...], ...] = ()
    """Commands after it."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an installation wrote: the digest of every file, every link, every directory. Nothing else is removed."""

    schema: int
    home: str
    files: dict[str, str]
    links: dict[str, str]
    folders: tuple[str, ...] = ()


def live_place(home: str, *, loopback: bool) -> Place:
    """Return where the running interpreter and package lie on this machine."""
    return Place(python=sys.executable, interpreter=tuple(interpreter_trees()), home=home, loopback=loopback)


def image_place(prefix: str, home: str, *, loopback: bool) -> Place:
    """Return where they will lie on the machine that boots an image: a checkout or an installation at *prefix*."""
    return Place(python=f"{prefix}/.venv/bin/python", interpreter=(prefix,), home=home, loopback=loopback)


def make(place: Place, *, live: bool) -> Plan:
    """Decide an installation.

    Raises:
        UsageError: a path cannot stand in a unit file.

    """
    users = (("systemd-sysusers", render.SYSUSERS_FILE), ("systemd-tmpfiles", "--create", render.TMPFILES_FILE))
    return Plan(
        place=place,
        files=render.files(place),
        links={render.WANTS_LINK: "../casemate.target", render.FENCE_LINK: "../casemate-fence.service"},
        users=users if live else (),
        start=_SYSTEMCTL_AFTER if live else (),
    )


def manifest(plan: Plan, folders: Sequence[str]) -> Manifest:
    """Return what is remembered of *plan*, and of the *folders* it makes, for the day it is removed."""
    digests = {path: digest(text.encode()) for path, text in plan.files.items()}
    return Manifest(SCHEMA, plan.place.home, digests, plan.links, tuple(folders))


def digest(data: bytes) -> str:
    """Return SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def require_system_place(place: Place) -> None:
    """Refuse to let services run code that an ordinary user may change, or that they cannot see.

    Raises:
        ConfigError: names the first directory that is wrong.

    """
    for tree in (*place.interpreter, str(Path(place.python).parent)):
        if tree.startswith(tuple(f"{private}/" for private in _PRIVATE_PLACES)):
            raise _unfit(f"{tree} lies in somebody's home, which services cannot see")
        for folder in (Path(tree), *Path(tree).parents):
            facts = folder.stat()
            sticky = bool(facts.st_mode & stat.S_ISVTX) and facts.st_uid == 0
            if facts.st_uid != 0 or (facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky):
                raise _unfit(f"others than root may change {folder}")
            if not facts.st_mode & stat.S_IXOTH:
                raise _unfit(f"the services' users cannot enter {folder}")


def _unfit(why: str) -> ConfigError:
    return ConfigError(
        f"cannot run services from here: {why}",
        hint=f"put the checkout at {IMAGE_PREFIX}, owned by root, run ./setup there, then install from it",
    )
