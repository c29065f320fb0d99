"""A server's directory: the fleet's keys and certificates, and its own settings, as files.

Everything else is in the database, settings of the whole fleet as well (`shared_settings`).

settings.json      database URL, fleet id, names of this server
fleet.db           SQLite, unless another database was given
ca/                root.pem, root.key (until it is taken offline), intermediate-N.pem and .key, charter.json
keys/              commands.key  signs commands: only the people's side opens it
                   witness.key   cosigns journals        audit.key  signs the fleet's own log
                   director.key  signs what each device shall take: online, and able to choose no more than what
                                 release keys signed
                   ear.key       signs attestation results
tls/               the listeners' certificate and key
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Final

import msgspec

from casemate import durable
from casemate.crypto.ecdsa import EcKey
from casemate.crypto.secret import Secret
from casemate.crypto.signing import SigningKey
from casemate.errors import NotFoundError, OperationError, UsageError
from casemate.formats.decoding import MALFORMED

SCHEMA: Final = 2
"""Of settings.json. In 1 it held what is the whole fleet's now (`earlier`)."""
KEYS: Final = ("commands", "witness", "audit", "director")
_SETTINGS: Final = "settings.json"
_MAX_FILE: Final = 1 << 20


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the server must remember between two starts."""

    fleet: str
    database: str
    names: tuple[str, ...] = ()
    devices_url: str = ""
    """Where devices are told to connect; empty: where the listener is."""
    enrol_url: str = ""
    """Where devices are told to enrol; empty: where the listener is."""
    people_url: str = ""
    """The address people open, https://HOST[:PORT]; passkeys belong to its host. Empty: where the listener is."""
    bus: str = ""
    """nats://...: where check-ins are buffered and servers tell each other of changes; empty: nowhere."""
    evidence_days: Annotated[int, msgspec.Meta(ge=1)] = 30
    """How long old results of attestation are kept."""
    grant_days: Annotated[int, msgspec.Meta(ge=30)] = 365
    """How long the broker's answers are kept, never shorter than the longest lease. The audit log keeps them all."""
    schema: int = SCHEMA


class _Written(msgspec.Struct, frozen=True):
    """Which form of settings a file has."""

    schema: int = 1


class FleetHome:
    """Paths and files below one directory (0700)."""

    def __init__(self, path: Path) -> None:
        """Name the directory; `create` or `open` come next."""
        self.path = path.absolute()
        self.ca = self.path / "ca"
        self.keys = self.path / "keys"
        self.tls = self.path / "tls"
        self.charter = self.ca / "charter.json"
        self.root = self.ca / "root.pem"
        self.settings_file = self.path / _SETTINGS

    @property
    def exists(self) -> bool:
        """Whether a fleet was made here."""
        return self.settings_file.exists()

    def create(self) -> None:
        """Make the empty directories.

        Raises:
            UsageError: something is there that is no fleet.
            OperationError: it cannot be written.

        """
        try:
            if self.path.exists() and any(self.path.iterdir()):
                raise UsageError(f"{self.path} is not empty and not a fleet's directory", hint="name an empty one")
            for directory in (self.path, self.ca, self.keys, self.tls):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                directory.chmod(0o700)
        except OSError as error:
            raise OperationError(f"cannot make {self.path}: {error.strerror}") from error

    def clear(self) -> None:
        """Remove what `create` and the first start made, as long as no settings make it a fleet."""
        if not self.exists:
            for directory in (self.ca, self.keys, self.tls):
                shutil.rmtree(directory, ignore_errors=True)
            for path in self.path.glob("fleet.db*"):
                path.unlink(missing_ok=True)

    def settings(self) -> Settings:
        """Read the settings.

        Raises:
            NotFoundError: no fleet here.
            OperationError: they are damaged, or an earlier version's.

        """
        if not self.exists:
            raise NotFoundError(f"no fleet in {self.path}", hint="`casemate fleet serve --dir DIR` makes one")
        stored = self.read(self.settings_file)
        try:
            if msgspec.json.decode(stored.decode(), type=_Written).schema < SCHEMA:
                raise OperationError(
                    f"{self.settings_file} is of an earlier version", hint="start `casemate fleet serve` once"
                )
            return msgspec.json.decode(stored, type=Settings)
        except MALFORMED as error:
            raise OperationError(f"{self.settings_file} is damaged: {error}", hint="restore a backup") from error

    def save_settings(self, settings: Settings) -> None:
        """Write the settings; with them the directory is a fleet's."""
        self.write(self.settings_file, msgspec.json.format(msgspec.json.encode(settings)) + b"\n")

    def signing_key(self, name: str) -> SigningKey:
        """Read an Ed25519 key of `KEYS`.

        Raises:
            NotFoundError: it is not here (a listener's process has no commands key).

        """
        with Secret(self.read(self.keys / f"{name}.key")) as stored:
            return SigningKey(Secret(bytes.fromhex(stored.reveal().decode("ascii").strip())))

    def new_signing_key(self, name: str) -> SigningKey:
        """Make and store an Ed25519 key."""
        key = SigningKey.generate()
        self.write(self.keys / f"{name}.key", key.seed().hex().encode() + b"\n")
        return key

    def ec_key(self, path: Path) -> EcKey:
        """Read an ECDSA key in PEM."""
        return EcKey.load_pem(self.read(path))

    def read(self, path: Path) -> bytes:
        """Return a small file.

        Raises:
            NotFoundError: it is not there.
            OperationError: it cannot be read, or is no small file.

        """
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE + 1)
        except FileNotFoundError as error:
            raise NotFoundError(f"no {path.name} in {path.parent}", hint="restore a backup of the fleet") from error
        except OSError as error:
            raise OperationError(f"cannot read {path}: {error.strerror}") from error
        if len(data) > _MAX_FILE:
            raise OperationError(f"{path} is no file of a fleet: it is too large")
        return data

    def write(self, path: Path, data: bytes, *, mode: int = 0o600) -> None:
        """Replace a file durably: a reader, or a power cut, sees the old bytes or the new.

        Raises:
            OperationError: disk full or read-only; the old file is untouched.

        """
        try:
            durable.replace(path, data, mode=mode)
        except OSError as error:
            raise OperationError(f"cannot write {path}: {error.strerror}", hint="free space, then try again") from error
