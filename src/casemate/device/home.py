"""Where a device keeps its things: the tree, who owns which part, its schema version, and the lock.

    home.json              identity and schema version
    keystore/              wrapped keys                         vault
    models/                encrypted containers                 vault
    apps/                  app key hashes and policies          root; the gateway's group reads
    journal/               the tamper-evident log               journal
    attester/              what this boot measured              attester
    fleet/                 whose orders are obeyed, and which   agent
    link/                  the device's key and certificate     link
    update/                whom updates come from, generations    update
    run/                   sockets, lock, state of the running device; empty after a reboot is fine

As root each part belongs to the uid of its process; as an ordinary user everything is the user's own (0700).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import grp
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from casemate import durable
from casemate.errors import BusyError, ConfigError, NotFoundError, OperationError

SCHEMA: Final = 1
PARTS: Final = {
    "keystore": "vault",
    "models": "vault",
    "apps": "gateway",
    "journal": "journal",
    "fleet": "agent",
    "link": "link",
    "update": "update",
    "attester": "attester",
    "run": "agent",
}
"""Whose each part is."""
READ_ONLY: Final = frozenset({"apps"})
"""Parts that only commands write: root owns them, the process reads by its group. It must not change who may call."""
ROLES: Final = ("agent", "vault", "engine", "gateway", "journal", "link", "update", "attester")
_UID_BASE: Final = 61900
"""First numeric id used when the system users `casemate-<role>` do not exist (inside systemd's dynamic-user range)."""


_LOCK_HINT: Final = "a running device makes it again: remove it, and find out who put it there"


class Identity(msgspec.Struct, forbid_unknown_fields=False):
    """The content of home.json."""

    schema: int
    id: str


@dataclasses.dataclass(frozen=True)
class Owner:
    """The ids one role runs with."""

    uid: int
    gid: int


def owner_of(role: str) -> Owner | None:
    """Return the ids for *role* when root runs the device, else None (everything is the caller's)."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(f"casemate-{role}")
    except KeyError:
        number = _UID_BASE + ROLES.index(role)
        found = Owner(number, number)
    else:
        found = Owner(entry.pw_uid, entry.pw_gid)
    return Owner(found.uid, _tpm_group(found.gid)) if role == "attester" else found


def _tpm_group(otherwise: int) -> int:
    """Return the group that may open the TPM's device node, where the system has one."""
    try:
        return grp.getgrnam("tss").gr_gid
    except KeyError:
        return otherwise


def shown_to(role: str) -> Owner | None:
    """Return the ids of a file that *role* reads and may not change: root's, and the group of *role*."""
    owner = owner_of(role)
    return Owner(0, owner.gid) if owner else None


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, owner: Owner | None = None) -> None:
    """Replace *path* durably: a reader sees the old bytes or the new, never a mixture; a crash leaves no debris behind.

    Raises:
        OperationError: disk full or read-only.

    """
    try:
        durable.replace(path, data, mode=mode, owner=(owner.uid, owner.gid) if owner else None)
    except OSError as error:
        raise OperationError(f"cannot write {path}: {error.strerror}", hint=_disk_hint(error)) from error


def _disk_hint(error: OSError) -> str:
    return f"free space or make {error.filename or 'it'} writable, then try again; nothing was changed"


def require_known_schema(schema: int, known: int = SCHEMA) -> None:
    """Refuse a home that a newer version made.

    Raises:
        ConfigError: its schema is above *known*.

    """
    if schema > known:
        raise ConfigError(
            f"this home has schema {schema}; this casemate understands up to {known}",
            hint="upgrade casemate; a newer home is never opened by an older version",
        )


class Home:
    """One device's tree."""

    def __init__(self, path: Path) -> None:
        """Name the tree at *path*; nothing is touched until `create` or `open`."""
        self.path = path
        self.keystore = path / "keystore"
        self.models = path / "models"
        self.apps = path / "apps"
        self.journal = path / "journal"
        self.fleet = path / "fleet"
        self.link = path / "link"
        self.update = path / "update"
        self.run = path / "run"
        self._identity: Identity | None = None

    @property
    def id(self) -> str:
        """Return the home's random identifier (names the journal's origin)."""
        return self._load().id

    @property
    def exists(self) -> bool:
        """Whether a home was made here."""
        return (self.path / "home.json").exists()

    def create(self) -> Home:
        """Make the tree, or complete one that a crash left unfinished; an existing home is opened.

        Raises:
            OperationError: the place cannot be written.

        """
        try:
            self.path.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
            for name in PARTS:
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
                self._give(name)
        except OSError as error:
            raise OperationError(
                f"cannot make a home at {self.path}: {error.strerror}",
                hint="set CASEMATE_HOME to a directory you can write",
            ) from error
        if os.geteuid() == 0:
            self._require_passage()
        if not self.exists:
            identity = Identity(schema=SCHEMA, id=secrets.token_hex(8))
            write_atomic(self.path / "home.json", msgspec.json.encode(identity) + b"\n", mode=0o644)
        return self.open()

    def open(self) -> Home:
        """Check that this is a home of a schema this version understands.

        Raises:
            NotFoundError: no home here.
            ConfigError: made by a newer version, or by an older one and not yet brought forward, or damaged.

        """
        self._identity = None
        self._load()
        return self

    def identity(self) -> Identity:
        """Read home.json, of any schema: only `device.migrate` may go on with one that is not current.

        Raises:
            NotFoundError: no home here.
            ConfigError: home.json is damaged.

        """
        try:
            return msgspec.json.decode((self.path / "home.json").read_bytes(), type=Identity)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"no casemate home at {self.path}",
                hint="run `casemate up` to make one, or set CASEMATE_HOME to where it is",
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{self.path}/home.json is damaged: {error}", hint="restore it with `casemate restore`"
            ) from error

    def _load(self) -> Identity:
        if self._identity is None:
            identity = self.identity()
            require_known_schema(identity.schema)
            if identity.schema < SCHEMA:
                raise ConfigError(
                    f"this home has schema {identity.schema}; this casemate works with {SCHEMA}",
                    hint="start it once with `casemate up` (or as a service): that brings it forward",
                )
            self._identity = identity
        return self._identity

    def _require_passage(self) -> None:
        """As root the processes have uids of their own: each must be able to walk to its part of the tree."""
        for directory in (self.path, *self.path.parents):
            if not directory.stat().st_mode & stat.S_IXOTH:
                raise OperationError(
                    f"the device's own users cannot enter {directory}",
                    hint=f"chmod o+x {directory}, or set CASEMATE_HOME to a place like /var/lib/casemate",
                )

    def _give(self, name: str) -> None:
        """Hand the directory *name* to its process, or show it to it (a no-op unless root)."""
        part, role = self.path / name, PARTS[name]
        owner = shown_to(role) if name in READ_ONLY else owner_of(role)
        if owner:
            os.chown(part, owner.uid, owner.gid)
            part.chmod(0o750 if name in READ_ONLY else stat.S_IMODE(part.stat().st_mode))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one device that runs on this home.

        Raises:
            BusyError: another `casemate up` holds it.
            OperationError: what lies there is not the lock.

        """
        fd = self._open_lock()
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(fd, 32, 0).strip()
                raise BusyError(
                    f"a device already runs on {self.path} (pid {pid.decode() if pid.isdigit() else 'unknown'})",
                    hint="stop it first, or use another CASEMATE_HOME",
                ) from None
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(fd)

    def _open_lock(self) -> int:
        """Open the lock. `run/` is the agent's and root opens this: a link to another file is not followed."""
        path = self.run / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OperationError(f"cannot open {path}: {error.strerror}", hint=_LOCK_HINT) from error
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            os.close(fd)
            raise OperationError(f"{path} is not a plain file", hint=_LOCK_HINT)
        return fd
