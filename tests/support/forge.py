"""A TUF repository whose every byte a test may set: keys in memory, roles signed by whom the test says."""

from __future__ import annotations

import copy
import datetime as dt
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
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

from casemate.device.update import trust
from casemate.device.update.client import Client
from casemate.device.update.floors import FileFloorStore
from casemate.errors import NotFoundError, UntrustedDataError
from support.release import FixedClock

TOP = {"root": Root, "timestamp": Timestamp, "snapshot": Snapshot, "targets": Targets}
KEYS = {"root": 3, "targets": 2}
THRESHOLD = {"root": 2, "targets": 2}
DAYS = {"root": 365, "targets": 90, "timestamp": 1, "snapshot": 7}


class Forge:
    """What is signed lies in `md`; `write` signs and publishes one role, `publish` all that changed above it."""

    def __init__(self, public: Path, now: float) -> None:
        self.public = public
        self.now = now
        self.keys: dict[str, list[CryptoSigner]] = {}
        root = Root(consistent_snapshot=True)
        self.md: dict[str, Metadata] = {"root": Metadata(root)}
        for role in TOP:
            self.keys[role] = [CryptoSigner.generate_ed25519() for _ in range(KEYS.get(role, 1))]
            for signer in self.keys[role]:
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = THRESHOLD.get(role, 1)
        self.md["targets"] = Metadata(Targets(delegations=Delegations({}, {})))
        self.md["snapshot"] = Metadata(Snapshot(meta={}))
        self.md["timestamp"] = Metadata(Timestamp(snapshot_meta=MetaFile(1)))
        for role in self.md:
            self.md[role].signed.version = 0
        self.write("root")
        self.publish("targets")

    @property
    def first_root(self) -> bytes:
        return (self.public / "metadata/1.root.json").read_bytes()

    def rotate(self, role: str, *, only: list[CryptoSigner] | None = None) -> None:
        """Give *role* new keys (or the keys *only*) in root; nothing is written."""
        root = self.md["root"].signed
        for signer in self.keys[role]:
            root.revoke_key(signer.public_key.keyid, role)
        self.keys[role] = only or [CryptoSigner.generate_ed25519() for _ in self.keys[role]]
        for signer in self.keys[role]:
            root.add_key(signer.public_key, role)

    def delegate(self, role: str, paths: list[str], *, parent="targets", threshold=1, terminating=True, keys=1):
        """Let *parent* delegate *paths* to *role*, which may be there already (nothing is signed yet)."""
        self.keys.setdefault(role, [CryptoSigner.generate_ed25519() for _ in range(keys)])
        body = self.md[parent].signed
        if body.delegations is None:
            body.delegations = Delegations({}, {})
        body.delegations.roles[role] = DelegatedRole(role, [], threshold, terminating, paths=paths)
        for signer in self.keys[role]:
            body.add_key(signer.public_key, role)
        if role not in self.md:
            self.md[role] = Metadata(Targets())
            self.md[role].signed.version = 0

    def put(self, role: str, path: str, data: bytes) -> TargetFile:
        """Write a target and name it in *role*'s metadata (not signed yet)."""
        info = TargetFile.from_data(path, data, ["sha256"])
        folder, slash, name = path.rpartition("/")
        file = self.public / "targets" / f"{folder}{slash}{info.hashes['sha256']}.{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.md[role].signed.targets[path] = info
        return info

    def write(self, role: str, *, by=None, days: float | None = None, version: int | None = None) -> int:
        """Sign *role* as the next version (or *version*) and publish its file; *by*: who signs."""
        metadata = self.md[role]
        metadata.signed.version = version or metadata.signed.version + 1
        life = DAYS.get(role, 30) if days is None else days
        moment = dt.datetime.fromtimestamp(int(self.now), dt.UTC) + dt.timedelta(days=life)
        metadata.signed.expires = moment.replace(microsecond=0)
        metadata.signatures.clear()
        for signer in self.keys[role] if by is None else by:
            metadata.sign(signer, append=True)
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        self.raw(f"metadata/{name}", metadata.to_bytes())
        return metadata.signed.version

    def publish(self, *roles: str, **how) -> None:
        """Sign *roles*, then the snapshot that names them, then the timestamp; *how* is for the roles."""
        for role in roles:
            self.write(role, **how)
        self.current()

    def current(self) -> None:
        """Sign snapshot and timestamp over what there is."""
        meta = self.md["snapshot"].signed.meta
        for role, metadata in self.md.items():
            if role not in {"root", "timestamp", "snapshot"}:
                meta[f"{role}.json"] = MetaFile(metadata.signed.version)
        self.md["timestamp"].signed.snapshot_meta = MetaFile(self.write("snapshot"))
        self.write("timestamp")

    def raw(self, path: str, data: bytes) -> None:
        file = self.public / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def save(self) -> dict[str, bytes]:
        """Everything that is published, to put back later."""
        return {str(path.relative_to(self.public)): path.read_bytes() for path in self.public.rglob("*.json")}

    def restore(self, saved: dict[str, bytes]) -> None:
        """Serve an older state: exactly those files."""
        for path in self.public.rglob("*.json"):
            path.unlink()
        for path, data in saved.items():
            self.raw(path, data)

    def copy_of(self, role: str) -> Metadata:
        return copy.deepcopy(self.md[role])


class Directory:
    """A `Source` over files, which notes what it was asked for."""

    def __init__(self, public: Path, *, offline: bool = False) -> None:
        self.public = public
        self.offline = offline
        self.asked: list[str] = []

    def get(self, path, limit, taken=lambda _size: None):
        self.asked.append(path)
        try:
            data = (self.public / path).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"no {path}") from None
        if len(data) > limit:
            raise UntrustedDataError(f"{path} is too large", check="transfer-size")
        taken(len(data))
        return data


def with_one_target(public: Path, now: float, role: str, pattern: str, target: tuple[str, bytes]) -> Forge:
    """Publish a repository in which *role*, which may sign for *pattern*, signs one *target* (its path, its bytes)."""
    made = Forge(public, now)
    made.delegate(role, [pattern])
    made.put(role, *target)
    made.publish("targets", role)
    return made


def trusting(directory: Path, forge: Forge) -> Path:
    """Make *directory* the `update/` of a device that trusts *forge*, unless it is one."""
    if not directory.exists():
        directory.mkdir()
        trust.establish(directory, forge.first_root, url="https://updates.example")
    return directory


def client_of(directory: Path, source: Directory, now: float) -> Client:
    """Return the client of the device in *directory*, which has only what is kept there."""
    return Client(directory, trust.load(directory), source, FileFloorStore(directory), FixedClock(now))
