"""A release repository: signed TUF metadata and static files in `public/`, keys and secrets beside it.

    repository.json        its id, the names of its keys          keys/       key files, encrypted
    private/releases/ID/   bundle, content key (sealed), papers   public/     what a web server serves
    public/metadata/       N.root.json ... timestamp.json         public/targets/  public/chunks/  public/grants/
    public/log/            the log of signatures

What counts is what `timestamp.json` points to. It is replaced last, after everything it names is durable, so a cut
leaves the old repository and some files that nobody names; a version number is never used twice.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, cast

import msgspec

# both packages re-export these without saying so
from securesystemslib.signer import Key, Signature, Signer, SSlibKey  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from casemate.clock import Clock
from casemate.crypto.signing import SigningKey
from casemate.errors import BusyError, NotAuthorisedError, NotFoundError, OperationError, UntrustedDataError, UsageError
from casemate.release import files, roles
from casemate.release.keys import KeyStore

SCHEMA: Final = 1
_KINDS: Final[dict[str, Any]] = {"root": Root, "snapshot": Snapshot, "timestamp": Timestamp}
_VERSIONED: Final = re.compile(r"([1-9][0-9]{0,9})\.([a-z]+)\.json\Z")

Edit = Callable[[Targets], object]


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`repository.json`. *keys* maps each TUF key's name to its key id; roles say which of them count."""

    schema: int
    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    keys: dict[str, str]
    authorities: dict[str, str]  # name of the key -> PEM certificate
    logs: dict[str, str]  # name of the key -> vkey


class TufSigner(Signer):
    """Signs metadata with one of our keys."""

    def __init__(self, key: SigningKey) -> None:
        """Sign with *key*."""
        self._key = key
        self._public = tuf_key(key.public)

    @property
    def public_key(self) -> Key:
        """The public half, as TUF writes it."""
        return self._public

    def sign(self, payload: bytes) -> Signature:
        """Sign *payload*."""
        return Signature(self._public.keyid, self._key.sign(payload).hex())

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> Signer:
        """Keys come from key files, never from addresses."""
        raise NotImplementedError


def tuf_key(public: bytes) -> SSlibKey:
    """Return an Ed25519 public key as TUF writes it; its id is the digest of its canonical JSON (TUF 4.2)."""
    value = {"public": public.hex()}
    body = {"keytype": "ed25519", "keyval": value, "scheme": "ed25519"}
    keyid = hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()
    return SSlibKey(keyid, "ed25519", "ed25519", value)


class Repository:
    """One repository on disk."""

    def __init__(self, directory: Path, keys: KeyStore, clock: Clock) -> None:
        """Open what `create` made; raises `NotFoundError` when there is none."""
        self.directory = directory
        self.public = directory / "public"
        self.keys = keys
        self._clock = clock
        self._signers: dict[str, TufSigner] = {}
        raw = files.read(directory / "repository.json", "release repository")
        try:
            self.description = msgspec.json.decode(raw, type=Description)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UntrustedDataError("repository.json does not parse", check="repository") from error

    @classmethod
    def create(cls, directory: Path, keys: KeyStore, clock: Clock, identity: str) -> Repository:
        """Make an empty repository with every TUF key. Its trust target and log are the caller's next step.

        Raises:
            OperationError: something is there already.

        """
        if directory.exists() and any(directory.iterdir()):
            raise OperationError(f"{directory} is not empty", hint="give a new directory")
        publics: dict[str, bytes] = {}
        for role in (*roles.TOP, *roles.DELEGATED):
            for name in roles.key_names(role):
                publics[name] = keys.make_signing(name, online=role.online)
        named = {name: tuf_key(public).keyid for name, public in publics.items()}
        write_description(directory, Description(SCHEMA, identity, named, {}, {}))
        made = cls(directory, keys, clock)
        made._write_first(publics)
        return made

    # -- reading

    @property
    def metadata(self) -> Path:
        """Where metadata is published."""
        return self.public / "metadata"

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self._clock.wall()

    def load(self, role: str) -> Metadata[Any]:
        """Return the current metadata of *role*, signatures not verified (these are our own files).

        Raises:
            NotFoundError: there is none.
            UntrustedDataError: `tuf-metadata` it does not parse.

        """
        if role == "root":
            versions = [version for version, name in self._versions() if name == role]
            path = self.metadata / f"{max(versions, default=0)}.root.json"
        elif role == "timestamp":
            path = self.metadata / "timestamp.json"
        elif role == "snapshot":
            path = self.metadata / f"{self.load('timestamp').signed.snapshot_meta.version}.snapshot.json"
        else:
            info = self.load("snapshot").signed.meta.get(f"{role}.json")
            if info is None:
                raise NotFoundError(f"the repository has no role {role}")
            path = self.metadata / f"{info.version}.{role}.json"
        try:
            return Metadata.from_bytes(files.read(path, f"{role} metadata"))
        except DeserializationError as error:
            raise UntrustedDataError(f"the metadata of {role} does not parse", check="tuf-metadata") from error

    def targets(self, role: str) -> Mapping[str, TargetFile]:
        """Return what *role* signs for: path -> size and digests."""
        return cast("Mapping[str, TargetFile]", self.load(role).signed.targets)

    def read_target(self, role: str, path: str) -> bytes:
        """Return the bytes of a target, checked against *role*'s metadata.

        Raises:
            NotFoundError: no such target.
            UntrustedDataError: `tuf-target` the file is another.

        """
        info = self.targets(role).get(path)
        if info is None:
            raise NotFoundError(f"the repository has no {path}", hint="`casemate release verify DIR` lists releases")
        data = files.read(self.public / "targets" / hashed_path(path, info.hashes["sha256"]), path)
        if len(data) != info.length or hashlib.sha256(data).hexdigest() != info.hashes["sha256"]:
            raise UntrustedDataError(f"the published {path} is not what was signed", check="tuf-target")
        return data

    def key_ids(self, role: str) -> list[str]:
        """Return the ids of the keys that count for *role*."""
        return list(self._authority(role).get_delegated_role(role).keyids)

    def key_names(self, role: str) -> list[str]:
        """Return the names of the keys that count for *role*."""
        ids = set(self.key_ids(role))
        return [name for name, keyid in self.description.keys.items() if keyid in ids]

    def _authority(self, role: str) -> Any:
        return self.load("root" if roles.BY_NAME[role] in roles.TOP else "targets").signed

    def _versions(self) -> list[tuple[int, str]]:
        matches = [_VERSIONED.match(path.name) for path in self.metadata.iterdir()] if self.metadata.exists() else []
        return [(int(match[1]), match[2]) for match in matches if match]

    # -- writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one who changes the repository.

        Raises:
            BusyError: another command does.

        """
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise BusyError("another command changes this repository", hint="wait for it") from None
        try:
            yield
        finally:
            os.close(fd)

    def add_target(self, path: str, data: bytes) -> TargetFile:
        """Write the file of a target; it counts once a role's metadata names what this returns."""
        info = TargetFile.from_data(path, data, ["sha256"])
        files.replace(self.public / "targets" / hashed_path(path, info.hashes["sha256"]), data)
        return info

    def edit(self, changes: Mapping[str, Edit]) -> None:
        """Change what targets roles sign for, then publish: each role in *changes* is signed, then what is current.

        Raises:
            NotAuthorisedError: not enough keys are here to sign.

        """
        written: dict[str, int] = {}
        for role, change in changes.items():
            metadata = self.load(role)
            change(metadata.signed)
            written[role] = self._write(role, metadata, self._signers_of(role))
        self._write_current(written)

    def edit_root(self, change: Callable[[Root], None], *, without: str = "") -> None:
        """Change root: signed by the old threshold and, where keys changed, by the new one; *without* the key so named.

        Raises:
            NotAuthorisedError: not enough keys are here to sign.

        """
        metadata = self.load("root")
        signers = self._signers_of("root", without=without)
        change(metadata.signed)
        role = metadata.signed.roles["root"]
        known = {signer.public_key.keyid for signer in signers}
        for name, keyid in self.description.keys.items():
            have = sum(1 for item in role.keyids if item in known)
            if keyid in role.keyids and keyid not in known and have < role.threshold and self.keys.has(name):
                signers.append(self._signer(name))
                known.add(keyid)
        if sum(1 for item in role.keyids if item in known) < role.threshold:
            raise _too_few("root")
        self._write("root", metadata, signers)

    def edit_delegation(self, role: str, change: Edit) -> None:
        """Change who signs for the delegated *role*, and sign its metadata again with the keys that count then.

        Raises:
            NotAuthorisedError: too few keys of targets are here.

        """
        metadata, own = self.load("targets"), self.load(role)
        signers = self._signers_of("targets")
        change(metadata.signed)
        delegated = metadata.signed.delegations.roles[role]
        names = [name for name, keyid in self.description.keys.items() if keyid in delegated.keyids]
        found = [name for name in names if self.keys.has(name)][: delegated.threshold]
        if len(found) < delegated.threshold:
            raise _too_few(role)
        written = {"targets": self._write("targets", metadata, signers)}
        written[role] = self._write(role, own, [self._signer(name) for name in found])
        self._write_current(written)

    def refresh(self) -> None:
        """Sign snapshot and timestamp again, with the online keys alone."""
        self._write_current({})

    def _write_current(self, written: Mapping[str, int]) -> None:
        """Publish: the snapshot that names *written*, then, last, the timestamp."""
        snapshot = self.load("snapshot")
        for role, version in written.items():
            snapshot.signed.meta[f"{role}.json"] = MetaFile(version)
        version = self._write("snapshot", snapshot, self._signers_of("snapshot"))
        timestamp = self.load("timestamp")
        timestamp.signed.snapshot_meta = MetaFile(version)
        self._write("timestamp", timestamp, self._signers_of("timestamp"))

    def _write(self, role: str, metadata: Metadata[Any], signers: list[TufSigner]) -> int:
        signed = metadata.signed
        used = [version for version, name in self._versions() if name == role]
        if role == "timestamp" and (self.metadata / "timestamp.json").exists():
            used.append(self.load("timestamp").signed.version)
        signed.version = max(used, default=0) + 1
        moment = dt.datetime.fromtimestamp(int(self.now()), dt.UTC)
        signed.expires = moment + dt.timedelta(days=roles.BY_NAME[role].days)
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
        files.replace(self.metadata / name, metadata.to_bytes(JSONSerializer()))
        return int(signed.version)

    def _signers_of(self, role: str, *, without: str = "") -> list[TufSigner]:
        """Open as many of *role*'s keys as its threshold asks for.

        Raises:
            NotAuthorisedError: too few of them are here.

        """
        needed = self._authority(role).get_delegated_role(role).threshold
        found = [name for name in self.key_names(role) if name != without and self.keys.has(name)][:needed]
        if len(found) < needed:
            raise _too_few(role)
        return [self._signer(name) for name in found]

    def _signer(self, name: str) -> TufSigner:
        if name not in self._signers:
            signer = TufSigner(self.keys.signing(name))
            if signer.public_key.keyid != self.description.keys.get(name):
                raise UntrustedDataError(f"the file of the key {name} holds another key", check="release-key")
            self._signers[name] = signer
        return self._signers[name]

    def _write_first(self, publics: Mapping[str, bytes]) -> None:
        """Write version 1 of everything."""
        root = Root(consistent_snapshot=True)
        for role in roles.TOP:
            for name in roles.key_names(role):
                root.add_key(tuf_key(publics[name]), role.name)
            root.roles[role.name].threshold = role.threshold
        targets = Targets(delegations=Delegations({}, {}))
        assert targets.delegations is not None
        assert targets.delegations.roles is not None
        for role in roles.DELEGATED:
            targets.delegations.roles[role.name] = DelegatedRole(
                role.name, [], role.threshold, terminating=True, paths=list(role.paths)
            )
            for name in roles.key_names(role):
                targets.add_key(tuf_key(publics[name]), role.name)
        self._write("root", Metadata(root), [self._signer(name) for name in ("root-1", "root-2")])
        snapshot = Snapshot(meta={})
        for name, body, signers in [
            ("targets", targets, ["targets-1", "targets-2"]),
            *((role.name, Targets(), roles.key_names(role)) for role in roles.DELEGATED),
        ]:
            written = self._write(name, Metadata(body), [self._signer(signer) for signer in signers])
            snapshot.meta[f"{name}.json"] = MetaFile(written)
        version = self._write("snapshot", Metadata(snapshot), [self._signer("snapshot-1")])
        timestamp = Timestamp(snapshot_meta=MetaFile(version))
        self._write("timestamp", Metadata(timestamp), [self._signer("timestamp-1")])


def write_description(directory: Path, description: Description) -> None:
    """Write `repository.json`."""
    files.replace(directory / "repository.json", msgspec.json.format(msgspec.json.encode(description)) + b"\n")


def hashed_path(path: str, sha256: str) -> str:
    """Return where a target's file stands: its digest before its name (TUF, consistent snapshots)."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{sha256}.{name}" if folder else f"{sha256}.{name}"


def _too_few(role: str) -> NotAuthorisedError:
    return NotAuthorisedError(
        f"too few keys of {role} are here to sign it",
        hint="plug in more of them and name their directories in CASEMATE_RELEASE_KEYS",
    )


def require_channel_name(name: str) -> str:
    """Check a channel's name.

    Raises:
        UsageError: it is none.

    """
    if not re.fullmatch(r"[a-z0-9](?!.*\.\.)[a-z0-9._-]{0,62}", name):
        raise UsageError(f"{name!r} is no channel name", hint="use a-z, 0-9, '.', '_' and '-'")
    return name
