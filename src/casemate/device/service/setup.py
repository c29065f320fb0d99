"""The root step before every start of the service: the home is whole, owned by the right users, and has its keys.

It parses no model (adding one is `casemate model add`, which does that in the sandbox) and stops before any network.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from casemate import keystores
from casemate.config import Settings
from casemate.device import generation, migrate, models, startup
from casemate.device.apps import AppStore
from casemate.device.attach import LINK_SOCKET
from casemate.device.fleet import orders
from casemate.device.fleet.membership import overwrite_and_remove
from casemate.device.home import Home, owner_of, write_atomic
from casemate.device.ownership import hand_over, own_directory
from casemate.device.service.facts import FILE_NAME, SCHEMA, Facts, encode, parse
from casemate.errors import BusyError, NotFoundError

_RUN_MODE: Final = 0o711


def setup(home: Home, settings: Settings, *, begin: Callable[[str], None]) -> Facts:
    """Prepare *home*, write the agent's facts, then *begin* the engine of every model (without waiting for it).

    While the device runs there is nothing to prepare: its engines are asked for once more.

    Raises:
        NotFoundError: there is no model to serve, or one that the settings name is missing.
        BusyError: another device runs on this home.
        NotAuthorisedError: a new keystore has no way in.

    """
    startup.require_tls(settings)
    try:
        facts = _prepare(home, settings)
    except BusyError:
        if not (home.run / LINK_SOCKET).exists():
            raise
        facts = parse((home.run / FILE_NAME).read_bytes())
    for name in facts.models:
        begin(name)
    return facts


def _prepare(home: Home, settings: Settings) -> Facts:
    migrate.bring_forward(home)
    home.create()
    with home.lock():
        if _being_wiped(home):
            return Facts(SCHEMA, {}, b"", recovery=False)
        sources = keystores.from_environment(home, tpm="")
        if not keystores.exists(home.keystore):
            keystores.create(home, sources).wipe()
        startup.default_app(home, show_key=lambda _key: False, say=lambda _text: None)
        boot = generation.boot(home, settings)
        served = serve_list(home, settings, boot)
        keys = keystores.describe(home, sources)
        held = {str(model.path): model for model in models.list_models(home)}
        found = {name: held[path] for name, path in served.items() if path in held}
        facts = Facts(
            SCHEMA,
            served,
            keys.owner_public,
            keys.recovery,
            boot.trial,
            gates={name: info.gate.model for name, info in found.items() if info.gate},
            digests=AppStore(home).policy_digests(),
            claims={name: info.digest for name, info in found.items()},
            generation=boot.content,
            policies=dict(boot.policy.apps),
            guard=boot.policy.guard,
        )
        hand_over(home)
        open_run(home)
        write_atomic(home.run / FILE_NAME, encode(facts), mode=0o600, owner=owner_of("agent"))
    return facts


def _being_wiped(home: Home) -> bool:
    """Whether a wipe has begun: then the key file goes (no unit can write where it lies), and no keystore is made.

    Raises:
        PolicyDeniedError: the wipe is over.
        UntrustedDataError: what the fleet ordered is damaged.

    """
    _, ordered = orders.standing(home) or (None, None)
    if ordered is None or ordered.state is not orders.State.WIPING:
        return False
    overwrite_and_remove(keystores.default_keyfile(home.id))
    return True


def serve_list(home: Home, settings: Settings, boot: generation.Booted = generation.NOTHING) -> dict[str, str]:
    """Return the container of every model to serve: those of the setting `models`, else all.

    Raises:
        NotFoundError: none, or one is missing.

    """
    found = boot.over({model.name: model.path for model in models.list_models(home)})
    held = {name: str(path) for name, path in found.items()}
    names = settings["models"] or sorted(held)
    missing = [name for name in names if name not in held]
    if missing or not names:
        raise NotFoundError(
            f"no model {missing[0]!r}" if missing else "no model to serve",
            hint="add one with `casemate model add FILE`, then start casemate.target again",
        )
    return {name: held[name] for name in dict.fromkeys(names)}


def open_run(home: Home) -> None:
    """Let the units' users walk to the link socket; what else is in `run/` has modes of its own."""
    link = home.run / Path(LINK_SOCKET).parent
    with contextlib.suppress(FileExistsError):  # also a link, which is refused below
        link.mkdir()
    for path in (home.run, link):
        own_directory(path, "agent", _RUN_MODE)


def begin_unit(model: str) -> None:
    """Ask the service manager for an engine of *model*; it comes up beside the other units."""
    subprocess.run(["systemctl", "start", "--no-block", f"casemate-engine@{model}.service"], check=False)
