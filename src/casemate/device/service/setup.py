"""The root step before every start of the service: the home is whole, owned by the right users, and has its keys.

It parses no model (adding one is `casemate model add`, which does that in the sandbox) and stops before any network.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from casemate import keystores
from casemate.config import Settings
from casemate.device import migrate, models, startup
from casemate.device.attach import LINK_SOCKET
from casemate.device.home import Home, owner_of, write_atomic
from casemate.device.service.facts import FILE_NAME, SCHEMA, Facts, encode
from casemate.errors import NotFoundError

_RUN_MODE: Final = 0o711


def setup(home: Home, settings: Settings, *, begin: Callable[[str], None]) -> Facts:
    """Prepare *home*, write the agent's facts, then *begin* the engine of every model (without waiting for it).

    Raises:
        NotFoundError: there is no model to serve, or one that the settings name is missing.
        BusyError: a device runs on this home.
        NotAuthorisedError: a new keystore has no way in.

    """
    startup.require_tls(settings)
    migrate.bring_forward(home)
    home.create()
    with home.lock():
        sources = keystores.from_environment(home)
        if not keystores.exists(home.keystore):
            keystores.create(home, sources).wipe()
        startup.default_app(home, show_key=lambda _key: False, say=lambda _text: None)
        served = serve_list(home, settings)
        keys = keystores.describe(home, sources)
        facts = Facts(SCHEMA, served, keys.owner_public, keys.recovery)
        hand_over(home)
        write_atomic(home.run / FILE_NAME, encode(facts), mode=0o600, owner=owner_of("agent"))
    for name in served:
        begin(name)
    return facts


def serve_list(home: Home, settings: Settings) -> dict[str, str]:
    """Return the container of every model to serve: those of the setting `models`, else all.

    Raises:
        NotFoundError: none, or one is missing.

    """
    held = {model.name: str(model.path) for model in models.list_models(home)}
    names = settings["models"] or sorted(held)
    missing = [name for name in names if name not in held]
    if missing or not names:
        raise NotFoundError(
            f"no model {missing[0]!r}" if missing else "no model to serve",
            hint="add one with `casemate model add FILE`, then start casemate.target again",
        )
    return {name: held[name] for name in dict.fromkeys(names)}


def hand_over(home: Home) -> None:
    """Give every part of the home to the uid of its process: a home made by another installation had other uids."""
    for part, role in ((home.keystore, "vault"), (home.models, "vault"), (home.apps, "gateway")):
        _own_tree(part, role)
    _own_tree(home.journal, "journal")
    link = home.run / Path(LINK_SOCKET).parent
    link.mkdir(exist_ok=True)
    for path in (home.run, link):
        _own(path, "agent")
        path.chmod(_RUN_MODE)
    _own(home.run / "lock", "agent")


def _own_tree(top: Path, role: str) -> None:
    _own(top, role)
    for folder, folders, names in os.walk(top):
        for name in (*folders, *names):
            _own(Path(folder, name), role)


def _own(path: Path, role: str) -> None:
    """Change the owner of a directory or a regular file with one name; links are left alone."""
    owner, facts = owner_of(role), path.lstat()
    plain = stat.S_ISDIR(facts.st_mode) or (stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1)
    if owner and plain and (facts.st_uid, facts.st_gid) != (owner.uid, owner.gid):
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def begin_unit(model: str) -> None:
    """Ask the service manager for an engine of *model*; it comes up beside the other units."""
    subprocess.run(["systemctl", "start", "--no-block", f"casemate-engine@{model}.service"], check=False)
