"""From settings to a `DevicePlan`: everything that can fail before the first process starts, in this order.

1  the host can build the sandbox, and TLS is there off loopback     (nothing was touched yet)
2  the home and its keystore exist, or are made
3  the models named are in the home; a file that is named is added; none named: every model, or the demo model
4  the app `default` exists, or is made and its key shown once
5  the sockets are bound
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import importlib.resources
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import msgspec

from casemate import __version__, keystores
from casemate.clock import SystemClock
from casemate.config import Settings, parse_address
from casemate.device import apart, generation, migrate, models
from casemate.device.apps import AppStore
from casemate.device.fleet import orders
from casemate.device.home import Home, owner_of, write_atomic
from casemate.device.plan import DevicePlan, ServedModel
from casemate.device.record import record
from casemate.device.sandbox import host
from casemate.errors import BusyError, ConfigError, NotFoundError, OperationError
from casemate.formats import event, ipc

DEMO_MODEL: Final = "saffron"
DEFAULT_APP: Final = "default"
KEY_FILE: Final = "default-app.key"


@dataclasses.dataclass(frozen=True)
class Person:
    """How start-up talks to whoever runs it."""

    say: Callable[[str], None]
    progress: models.ShowProgress
    announce: Callable[[str], None]
    sources: Callable[[Home], keystores.Sources]
    """Says where the keystore's secrets come from: the environment, or a terminal."""
    show_key: Callable[[str], bool]
    """Shows a fresh app key; False when nobody can see it: then it goes to a 0600 file that `status` names."""


@contextlib.contextmanager
def prepare(
    home: Home,
    settings: Settings,
    wanted: Sequence[str],
    recorded: Mapping[str, tuple[str, ...]],
    person: Person,
) -> Iterator[DevicePlan]:
    """Yield the plan while holding the home's lock; closes what it opened.

    Raises:
        HostError: the host lacks a layer of the sandbox.
        ConfigError: an address off loopback without TLS.
        BusyError: a device already runs on this home, or the port is taken.
        NotFoundError: a model that is neither a file nor in the home.
        NotAuthorisedError: the keystore does not open with what was given.
        PolicyDeniedError: the device's fleet wiped it.
        UntrustedDataError: what its fleet ordered is damaged.

    """
    owner = owner_of("engine")
    host.require_layers(*((owner.uid, owner.gid) if owner else ()))
    require_tls(settings)
    migrate.bring_forward(home)
    with contextlib.ExitStack() as held:
        home.create()
        held.enter_context(home.lock())
        member, ordered = orders.standing(home) or (None, None)
        boot = generation.boot(home, settings)
        if boot.note:
            person.say(f"update: {boot.note}")
        if ordered and ordered.state is orders.State.WIPING:  # no keystore may be made again, or opened
            found, unlock = _Found((), ordered.owner, recovery=False), _keyfile_of(home)
        else:
            found, unlock = apart.run(lambda: _with_secrets(home, wanted, recorded, person, boot), _Found)
        yield DevicePlan(
            home=home,
            settings=settings,
            models=found.models,
            **open_doors(held, settings),
            owner_public=found.owner_public,
            policies=found.policies,
            unlock=_opened(held, unlock),
            notes={"version": __version__, "recovery": found.recovery},
            announce=person.announce,
            report=person.say,
            policy=ipc.TakePolicy(dict(boot.policy.apps), boot.policy.guard),
            on_trial=boot.trial,
            unsettled=boot.unsettled,
            generation=boot.content,
            member=member,
        )


def _keyfile_of(home: Home) -> dict[str, int]:
    """Open the key file, to be destroyed; one that is not there needs nothing."""
    try:
        return {"keyfile": os.open(keystores.default_keyfile(home.id), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)}
    except OSError:
        return {}


class _Found(msgspec.Struct):
    """What the agent may know of steps 2 to 4."""

    models: tuple[ServedModel, ...]
    owner_public: str
    recovery: bool
    policies: dict[str, str] = {}


def _with_secrets(
    home: Home,
    wanted: Sequence[str],
    recorded: Mapping[str, tuple[str, ...]],
    person: Person,
    boot: generation.Booted,
) -> tuple[_Found, Mapping[str, int]]:
    """Take steps 2 to 4; runs apart from the agent. The descriptors are what unlocks the keystore."""
    sources = person.sources(home)
    served = resolve_models(home, wanted, recorded, sources, person, boot=boot)
    default_app(home, show_key=person.show_key, say=person.say)
    keys = keystores.describe(home, sources)
    found = _Found(served, base64.b64encode(keys.owner_public).decode(), keys.recovery, AppStore(home).policy_digests())
    return found, sources.descriptors()


# --- models -----------------------------------------------------------------------------------------------------------


def resolve_models(
    home: Home,
    wanted: Sequence[str],
    recorded: Mapping[str, tuple[str, ...]],
    sources: keystores.Sources,
    person: Person,
    *,
    boot: generation.Booted = generation.NOTHING,
) -> tuple[ServedModel, ...]:
    """Resolve what to serve, adding files that are named (an existing file wins over a name) and the demo model.

    A generation's model is served under its name, whatever the home has under it.

    Makes the keystore when there is none. The caller holds the home's lock.

    Raises:
        NotFoundError: a model that is neither a file nor in the home.
        BusyError: a file is not the model that the home has under its name.
        UntrustedDataError: a file is not a model.

    """
    found = models.list_models(home)
    held = boot.over({model.name: model.path for model in found})
    files = {models.name_for(Path(text)): Path(text) for text in wanted if Path(text).is_file()}
    names = [models.name_for(Path(text)) if Path(text).is_file() else text for text in wanted]
    adding = {name: path for name, path in files.items() if name not in held}
    for name in files.keys() & held.keys():
        _require_same(files[name], models.show_model(home, generation.container(name, held[name]) or name))
    with contextlib.ExitStack() as packaged:
        if not names and not recorded and not held:
            adding[DEMO_MODEL] = packaged.enter_context(importlib.resources.as_file(_demo_file()))
        if adding or not keystores.exists(home.keystore):
            _add(home, adding, sources, person)
            found = models.list_models(home)
            held = boot.over({model.name: model.path for model in found})
    missing = [name for name in names if name not in held]
    if missing:
        raise NotFoundError(
            f"no model {missing[0]!r}",
            hint=f"have: {', '.join(sorted(held)) or 'none'}; add one with `casemate model add FILE`",
        )
    chosen = names or ([] if recorded else sorted(held))
    gates = {model.path: model.gate.model for model in found if model.gate}
    digests = {model.path: model.digest for model in found}
    served = [
        ServedModel(
            name,
            str(held[name]),
            container=generation.container(name, held[name]),
            gate=gates.get(held[name], ""),
            digest=digests.get(held[name], ""),
        )
        for name in dict.fromkeys(chosen)
    ]
    return tuple(served + [ServedModel(name, "", chunks) for name, chunks in recorded.items()])


def _require_same(path: Path, known: models.ModelInfo) -> None:
    """Refuse a file that changed since it was added: what is served is what was named, never an older copy of it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if f"sha256:{digest}" != known.digest:
        raise BusyError(
            f"{path} is not the model that is here as {known.name!r}",
            hint=f"add it: `casemate model add {path} --replace`, or with another --name",
        )


def _demo_file() -> Traversable:
    return importlib.resources.files("casemate.data") / "saffron" / "saffron-q8_0.gguf"


def _add(home: Home, adding: Mapping[str, Path], sources: keystores.Sources, person: Person) -> None:
    """Make the keystore if there is none, and encrypt every file of *adding*."""
    if not keystores.exists(home.keystore):
        with keystores.create(home, sources) as keystore:
            person.say(f"{keystore.story}; `casemate keystore add-recovery` makes a way back")
    for name, path in adding.items():
        licence = "Apache-2.0" if name == DEMO_MODEL else ""
        models.add_model(home, sources, path, name=name, licence=licence, progress=person.progress)


# --- the default app --------------------------------------------------------------------------------------------------


def default_app(home: Home, *, show_key: Callable[[str], bool], say: Callable[[str], None]) -> None:
    """Make app `default` on the first run; its key is shown once, or left in a private file that `status` names."""
    store = AppStore(home)
    if store.records():
        return
    key = store.add(DEFAULT_APP)
    record(home, event.app_added(app=DEFAULT_APP, now=SystemClock().wall()))
    if not show_key(key):
        path = home.run / KEY_FILE
        write_atomic(path, key.encode() + b"\n")
        say(f"app key of 'default' is in {path}")


# --- sockets and TLS --------------------------------------------------------------------------------------------------


def require_tls(settings: Settings) -> None:
    """Refuse an address that others can reach without TLS.

    Raises:
        ConfigError: it is one, or TLS is set by half.

    """
    certificate, key = settings["tls.certificate"], settings["tls.key"]
    if bool(certificate) != bool(key):
        raise ConfigError("tls.certificate and tls.key belong together", hint="set both or none")
    name, _ = parse_address(settings["listen"])
    if not certificate and not _is_loopback(name):
        raise ConfigError(
            f"refusing to listen on {settings['listen']} without TLS",
            hint="set tls.certificate and tls.key, or listen on 127.0.0.1",
        )


def open_doors(held: contextlib.ExitStack, settings: Settings) -> dict[str, Any]:
    """Bind what the plan's `listen` and `metrics` are and open its `tls`; *held* closes them.

    Raises:
        BusyError: an address is taken.
        OperationError: it cannot be bound.
        ConfigError: a TLS file cannot be read, or metrics would listen off loopback.

    """
    return {
        "listen": held.enter_context(_bind(settings["listen"])),
        "metrics": held.enter_context(_bind(_loopback_only(settings["metrics_listen"]))),
        "tls": _opened(held, _tls_files(settings)),
    }


def is_loopback(settings: Settings) -> bool:
    """Whether the API listens on loopback only."""
    return _is_loopback(parse_address(settings["listen"])[0])


def _loopback_only(address: str) -> str:
    name, _ = parse_address(address)
    if not _is_loopback(name):
        raise ConfigError(f"metrics_listen {address} is not loopback", hint="scrape through a local agent or a tunnel")
    return address


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _bind(address: str) -> socket.socket:
    name, port = parse_address(address)
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((name, port))
        sock.listen(256)
    except OSError as error:
        sock.close()
        kind = BusyError if error.errno == 98 else OperationError  # noqa: PLR2004 - EADDRINUSE
        raise kind(
            f"cannot listen on {address}: {(error.strerror or str(error)).lower()}",
            hint="choose another: `casemate up --listen 127.0.0.1:0` picks a free one (or CASEMATE_LISTEN=...)",
        ) from error
    return sock


def _tls_files(settings: Settings) -> dict[str, int]:
    """Copy certificate and key into memory files: the gateway's own uid may not read the originals."""
    opened: dict[str, int] = {}
    for name in ("tls.certificate", "tls.key"):
        if settings[name]:
            try:
                data = Path(settings[name]).read_bytes()
            except OSError as error:
                raise ConfigError(f"cannot read {name} {error.filename}: {error.strerror}") from error
            opened[name] = os.memfd_create(name, os.MFD_CLOEXEC)
            os.pwrite(opened[name], data, 0)
    return opened


def _opened(held: contextlib.ExitStack, fds: Mapping[str, int]) -> Mapping[str, int]:
    for fd in fds.values():
        held.callback(os.close, fd)
    return fds
