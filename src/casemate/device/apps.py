"""The apps that may call this device: names, hashed keys, policies. `apps/apps.json` and `apps/<name>.toml`.

A key is `cmk_` + 8 hex digits (its id, for a lookup without scanning) + `_` + 256 random bits. Only its SHA-256 is
stored: a password hash would add nothing, because nobody can guess 256 random bits, and would cost every request
milliseconds. The key itself is printed once. Writers hold a lock and replace files atomically; readers never lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from casemate.clock import Clock, SystemClock
from casemate.device.home import Home, shown_to, write_atomic
from casemate.errors import CasemateError, ConfigError, NotFoundError, OperationError, UsageError
from casemate.formats.policy import POLICY_LIMIT, AppPolicy, parse_policy
from casemate.ids import AppName, parse_name

SCHEMA: Final = 1
MAX_APPS: Final = 1000
_FILE_LIMIT: Final = 4 * 1024 * 1024
_KEY = re.compile(r"cmk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})\Z")


class AppRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One app as stored. `created` and `rotated` are seconds since the epoch."""

    name: str
    key_id: str
    key_sha256: str
    created: int
    rotated: int


class _AppFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int = SCHEMA
    apps: list[AppRecord] = []


@dataclass(frozen=True, slots=True)
class App:
    """An app as the gateway sees it. `policy` is None when its file is broken: such an app is refused."""

    name: AppName
    key_id: str
    key_sha256: str
    policy: AppPolicy | None


@dataclass(frozen=True, slots=True)
class AppSet:
    """One consistent reading of the directory, by key id, with what was wrong in it."""

    by_key_id: Mapping[str, App]
    faults: tuple[str, ...] = ()

    def find(self, key: str) -> App | None:
        """Return the app whose key this is. Takes the same time for a wrong id and a wrong secret."""
        match = _KEY.match(key)
        app = self.by_key_id.get(match[1]) if match else None
        expected = app.key_sha256 if app else _NOBODY
        return app if hmac.compare_digest(_hash(key), expected) and app else None


def _hash(key: str) -> str:
    return hashlib.sha256(b"casemate app key\0" + key.encode("utf-8", "surrogatepass")).hexdigest()


_NOBODY: Final = "0" * 64


def _new_key() -> tuple[str, str]:
    key_id = secrets.token_hex(4)
    return key_id, f"cmk_{key_id}_{secrets.token_urlsafe(32)}"


class AppStore:
    """Writes the apps of one home."""

    def __init__(self, home: Home, clock: Clock | None = None) -> None:
        """Keep apps in *home*; *clock* dates them."""
        self._directory = home.apps
        self._clock = clock or SystemClock()

    def policy_digests(self) -> dict[str, str]:
        """Return the SHA-256 (hex) of each app's policy file, broken ones too (no file, as an empty one: defaults)."""
        found = {}
        for app in self.records():
            path = self.policy_path(app.name)
            found[app.name] = hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()
        return found

    def records(self) -> list[AppRecord]:
        """Return every app, by name.

        Raises:
            ConfigError: apps.json is damaged.

        """
        return sorted(_read_records(self._directory), key=lambda record: record.name)

    def get(self, name: str) -> AppRecord:
        """Return the app called *name*.

        Raises:
            NotFoundError: there is none.

        """
        for record in self.records():
            if record.name == name:
                return record
        raise NotFoundError(f"no app {name!r}", hint="`casemate app list` shows them")

    def policy_path(self, name: str) -> Path:
        """Return where the policy of *name* is, or would be."""
        return self._directory / f"{parse_name(name, 'app')}.toml"

    def policy(self, name: str) -> AppPolicy:
        """Return the policy of *name* (the defaults when it has no file).

        Raises:
            ConfigError: its file is wrong.

        """
        return _read_policy(self.policy_path(name))

    def add(self, name: str, policy: tuple[bytes, str] | None = None) -> str:
        """Make an app and return its key: the only time it is seen. *policy* is a file's bytes and its name.

        Raises:
            UsageError: the name is taken or not a name; too many apps.
            ConfigError: the policy is wrong; nothing is changed.

        """
        path = self.policy_path(name)
        if policy is not None:
            parse_policy(policy[0], source=policy[1])
        with self._writing() as records:
            if any(record.name == name for record in records):
                raise UsageError(f"app {name!r} exists", hint=f"`casemate app rotate {name}` gives it a new key")
            if len(records) >= MAX_APPS:
                raise UsageError(f"there are {MAX_APPS} apps already", hint="remove one with `casemate app rm`")
            path.unlink(missing_ok=True)
            if policy is not None:
                self._write(path, policy[0])
            key_id, key = _new_key()
            now = int(self._clock.wall())
            records.append(AppRecord(name, key_id, _hash(key), created=now, rotated=now))
        return key

    def rotate(self, name: str) -> str:
        """Give *name* a new key and return it; the old key is void at once.

        Raises:
            NotFoundError: there is no such app.

        """
        with self._writing() as records:
            index = _index(records, name)
            key_id, key = _new_key()
            records[index] = msgspec.structs.replace(
                records[index], key_id=key_id, key_sha256=_hash(key), rotated=int(self._clock.wall())
            )
        return key

    def remove(self, name: str) -> None:
        """Forget *name*, its key and its policy.

        Raises:
            NotFoundError: there is no such app.

        """
        with self._writing() as records:
            del records[_index(records, name)]
        self.policy_path(name).unlink(missing_ok=True)

    def set_policy(self, name: str, policy: bytes, *, source: str) -> None:
        """Replace the policy of *name* by the bytes of the file *source*.

        Raises:
            NotFoundError: there is no such app.
            ConfigError: the policy is wrong; the old one stays.

        """
        parse_policy(policy, source=source)
        with self._writing() as records:
            _index(records, name)
            self._write(self.policy_path(name), policy)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[list[AppRecord]]:
        """Yield the records to change; they are written, atomically, when the block ends well."""
        try:
            fd = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OperationError(
                f"cannot write {self._directory}: {error.strerror}",
                hint="run it as the owner of the home, or with sudo",
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            records = _read_records(self._directory)
            before = list(records)
            yield records
            if records != before:
                body = msgspec.json.format(msgspec.json.encode(_AppFile(apps=records)), indent=1)
                self._write(self._directory / "apps.json", body + b"\n")
        finally:
            os.close(fd)

    def _write(self, path: Path, data: bytes) -> None:
        shown = shown_to("gateway")
        write_atomic(path, data, mode=0o640 if shown else 0o600, owner=shown)


def _index(records: list[AppRecord], name: str) -> int:
    for index, record in enumerate(records):
        if record.name == name:
            return index
    raise NotFoundError(f"no app {name!r}", hint="`casemate app list` shows them")


def _read_bounded(path: Path, limit: int) -> bytes | None:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="the gateway's group must be able to read it"
        ) from error
    if len(data) > limit:
        raise ConfigError(f"{path} is larger than {limit} bytes", hint="restore it with `casemate restore`")
    return data


def _read_records(directory: Path) -> list[AppRecord]:
    path = directory / "apps.json"
    data = _read_bounded(path, _FILE_LIMIT)
    if data is None:
        return []
    try:
        file = msgspec.json.decode(data, type=_AppFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged: {error}", hint="restore it with `casemate restore`") from error
    if file.schema != SCHEMA:
        raise ConfigError(f"{path} has schema {file.schema}, not {SCHEMA}", hint="upgrade casemate")
    return file.apps


def _read_policy(path: Path) -> AppPolicy:
    data = _read_bounded(path, POLICY_LIMIT)
    return AppPolicy() if data is None else parse_policy(data, source=path.name)


def read_apps(directory: Path) -> AppSet:
    """Read every app and policy of *directory* for checking requests.

    A broken policy closes its own app only, and is named in `faults`.

    Raises:
        ConfigError: apps.json itself is damaged or unreadable.

    """
    apps: dict[str, App] = {}
    faults: list[str] = []
    for record in _read_records(directory):
        policy: AppPolicy | None = None
        try:
            policy = _read_policy(directory / f"{parse_name(record.name, 'app')}.toml")
        except CasemateError as error:
            faults.append(error.message)
        apps[record.key_id] = App(AppName(record.name), record.key_id, record.key_sha256, policy)
    return AppSet(apps, tuple(faults))


def overridden(apps: AppSet, policies: Mapping[str, AppPolicy]) -> AppSet:
    """Return *apps* with the policies of those that a generation names, also where their own file is broken."""
    named = {
        key: App(app.name, app.key_id, app.key_sha256, policies.get(app.name, app.policy))
        for key, app in apps.by_key_id.items()
    }
    return AppSet(named, apps.faults)


Signature = tuple[tuple[str, int, int, int], ...]


def signature(directory: Path) -> Signature:
    """Return a value that changes when a file of the store is replaced or edited; cheap enough to ask often."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name == "apps.json" or (entry.name.endswith(".toml") and not entry.name.startswith(".")):
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    found.append((entry.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(found))
