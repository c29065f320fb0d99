"""What is current: TUF metadata by python-tuf's client, held against floors it does not know.

python-tuf verifies; we give it bytes (`Source`), a clock that does not go back, and no say over what was seen before:
its cache in `tuf/` may be deleted at any time. Versions go to the floor store before a target is used. Payload never
passes through here: a target is a small signed list, and its client writes whole targets to a temporary directory.

One process at a time: whoever calls holds the device's update lock.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

# python-tuf re-exports some of these without saying so
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Root, Signed, TargetFile, Targets  # type: ignore[attr-defined]
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from casemate.clock import Clock
from casemate.device.update.floors import Floors, FloorStore, require_not_below
from casemate.device.update.source import METADATA, TARGETS, Source
from casemate.device.update.trust import FirstTrust, cache_of, clear_cache
from casemate.errors import CasemateError, NotFoundError, OperationError, UntrustedDataError

BUILT: Final = 1_795_132_800  # 2026-11-20: it is never earlier than when this was written
SKEW: Final = 300  # seconds a clock may go back when it is set right
OFFLINE_LIMIT: Final = 365
_DAY: Final = 86_400


class Freshness(msgspec.Struct, frozen=True):
    """How current what was read is. *expires*: when the timestamp does (seconds); *stale_days*: how long it has been.

    `stale_days` above 0 happens only from local media, as far as the offline keys allow it: weaker, and to be shown.
    """

    offline: bool
    expires: int
    stale_days: int


class Target(msgspec.Struct, frozen=True):
    """A file, byte for byte what signed metadata names."""

    path: str
    data: bytes
    sha256: str


class Client:
    """What a repository says now, verified."""

    def __init__(
        self,
        directory: Path,
        trust: FirstTrust,
        source: Source,
        floors: FloorStore,
        clock: Clock,
        *,
        earliest: int = BUILT,
    ) -> None:
        """Work in *directory* (the home's `update/`); it is not earlier than *earliest* (seconds)."""
        self._directory = directory
        self._trust = trust
        self._source = source
        self._floors = floors
        self._clock = clock
        self._earliest = earliest
        self._now = 0
        self._updater: _Updater | None = None

    def refresh(self) -> Freshness:
        """Find out what is current. Versions seen are in the floor store when this returns.

        Raises:
            UntrustedDataError: `metadata-*` a rule of TUF is broken, `metadata-replay`, `floors-*`, `clock`.
            NotFoundError: there is no repository.
            OperationError: it cannot be reached, or the disk is full.

        """
        floors = self._floors.read()
        if floors.trust != self._trust.digest:
            raise UntrustedDataError(
                "the floors belong to another first trust",
                check="floors-trust",
                hint="somebody changed the device's files; give first trust again with `casemate update trust`",
            )
        self._now = require_clock(self._clock.wall(), max(floors.clock, self._earliest))
        with _rules():
            self._updater = updater = self._open()
            updater.refresh()
        found = updater.seen(self._trust.digest, self._now)
        try:
            require_not_below(floors, found)
        except UntrustedDataError:
            clear_cache(self._directory)  # so that an honest server is not measured against a replayed state
            raise
        freshness = self._freshness()
        self._floors.raise_to(found)
        return freshness

    def find(self, path: str, limit: int) -> TargetFile:
        """Return what signed metadata says of the target *path*, of at most *limit* bytes; call `refresh` first.

        Raises:
            NotFoundError: nobody who may signs for such a target.
            UntrustedDataError: `metadata-*`, `target-size`.
            OperationError: the metadata cannot be fetched.

        """
        with _rules():
            info = self._require_updater().get_targetinfo(path)
        self._require_fresh_targets()
        if info is None:
            raise NotFoundError(f"the repository has no {path}", hint="was it published, and promoted?")
        if info.length > limit:
            raise UntrustedDataError(f"{path} is larger than {limit} bytes", check="target-size", hint=_AGAIN)
        return info

    def read(self, path: str, limit: int) -> Target:
        """Return the target *path*.

        Raises:
            NotFoundError: as `find`, or its file is not there.
            UntrustedDataError: as `find`; `target-digest`.
            OperationError: it cannot be fetched.

        """
        info = self.find(path, limit)
        data = self._source.get(TARGETS + self._require_updater().file_of(path, info.hashes), info.length)
        try:
            info.verify_length_and_hashes(data)
        except LengthOrHashMismatchError as error:
            raise UntrustedDataError(
                f"{path} is not the file that the metadata names", check="target-digest", hint="fetch it again"
            ) from error
        return Target(path, data, hashlib.sha256(data).hexdigest())

    def learn_time(self, signed: int) -> None:
        """Take a time (seconds) out of signed data: it is not earlier now, and never will be.

        Raises:
            UntrustedDataError: `clock`: this device's clock says it is.

        """
        require_clock(self._clock.wall(), max(signed, self._earliest))
        self._floors.raise_to(Floors(clock=signed))

    def allow_offline(self, days: int) -> None:
        """Hold what came from local media against *days*, the staleness that the offline keys allow.

        Raises:
            UntrustedDataError: `metadata-expired`.

        """
        stale = self._freshness().stale_days
        if self._source.offline and stale > min(days, OFFLINE_LIMIT):
            raise UntrustedDataError(
                f"the export is {stale} days past its date and {days} are allowed",
                check="metadata-expired",
                hint="make a new one: `casemate release refresh DIR`, then `casemate release export DIR F.tar`",
            )

    def _open(self) -> _Updater:
        cache = cache_of(self._directory)
        cache.mkdir(mode=0o700, exist_ok=True)
        root = self._trust.root.encode("utf-8")
        updater = _Updater(str(cache), METADATA, fetcher=_Fetcher(self._source), bootstrap=root)
        updater.set_time(self._now - (OFFLINE_LIMIT * _DAY if self._source.offline else 0))
        return updater

    def _require_updater(self) -> _Updater:
        if self._updater is None:
            raise OperationError("nothing was refreshed yet", hint="this is a bug")
        return self._updater

    def _freshness(self) -> Freshness:
        """Judge the roles that hold for everything. Staleness of the online ones waits for `allow_offline`."""
        held = self._require_updater().held()
        self._require_fresh_targets()
        ends = min(_seconds(held[role]) for role in ("timestamp", "snapshot"))
        return Freshness(self._source.offline, ends, max(0, -(-(self._now - ends) // _DAY)))

    def _require_fresh_targets(self) -> None:
        """Refuse an expired root or list of targets: local media get no grace for what offline keys sign."""
        for role, signed in self._require_updater().held().items():
            if isinstance(signed, Root | Targets) and self._now >= _seconds(signed):
                raise UntrustedDataError(f"the metadata of {role} has expired", check="metadata-expired", hint=_STALE)


def require_clock(wall: float, least: int) -> int:
    """Return the time to judge by: *wall*, never below *least* (both in seconds).

    Raises:
        UntrustedDataError: `clock`: *wall* is earlier than it can be.

    """
    if wall < least - SKEW:
        moment = dt.datetime.fromtimestamp(least, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise UntrustedDataError(
            f"this device's clock is wrong: it has been {moment} before",
            check="clock",
            hint="set it (`timedatectl set-ntp true`); if it is right now and was wrong before: "
            "`casemate update trust ROOT.json --url U --accept-clock`",
        )
    return max(int(wall), least)


class _Fetcher(FetcherInterface):
    """Gives python-tuf bytes from our source, within its own bounds."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise DownloadError(f"{url}: targets are not fetched by this client")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        try:
            return self._source.get(url, max_length)
        except NotFoundError as error:
            raise DownloadHTTPError(error.message, 404) from error


class _Updater(Updater):
    """python-tuf's client; these few methods are all that knows its inside."""

    def set_time(self, now: int) -> None:
        """Judge expiry by *now*."""
        held = self._trusted_set
        if not isinstance(held.reference_time, dt.datetime):
            raise TypeError("python-tuf has changed")  # never judge by a clock we do not control
        held.reference_time = dt.datetime.fromtimestamp(now, dt.UTC)

    def held(self) -> dict[str, Signed]:
        """Return what is loaded, by role."""
        return dict(self._trusted_set._trusted_set)  # noqa: SLF001 - its mapping iterates over values, without names

    def seen(self, trust: str, now: int) -> Floors:
        """Return the versions that were verified."""
        held = self._trusted_set
        versions = {role.removesuffix(".json"): info.version for role, info in held.snapshot.meta.items()}
        versions |= {"root": held.root.version, "timestamp": held.timestamp.version, "snapshot": held.snapshot.version}
        keys = [sorted(held.root.get_delegated_role(role).keyids) for role in ("timestamp", "snapshot")]
        online = hashlib.sha256(msgspec.json.encode(keys)).hexdigest()
        try:
            return msgspec.convert(
                {"trust": trust, "online": online, "versions": versions, "security": {}, "clock": now}, Floors
            )
        except msgspec.ValidationError as error:
            raise UntrustedDataError(f"the snapshot is beyond bounds: {error}", check="metadata-form") from error

    def file_of(self, path: str, hashes: dict[str, str]) -> str:
        """Return where a target's file stands (TUF 5.7.3)."""
        if not self._trusted_set.root.consistent_snapshot:
            return path
        folder, slash, name = path.rpartition("/")
        return f"{folder}{slash}{next(iter(hashes.values()))}.{name}"


class _rules:  # noqa: N801 - a context, used like a function
    """Turns python-tuf's refusals into ours: which rule was broken, and what to do."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Translate."""
        if error is None or isinstance(error, CasemateError):
            return
        if isinstance(error, DownloadHTTPError) and isinstance(error.__cause__, NotFoundError):
            raise error.__cause__
        if isinstance(error, DownloadError | RepositoryError | ValueError | RecursionError):
            check, hint = next(row[1:] for row in _RULES if isinstance(error, row[0]))
            raise UntrustedDataError(f"the repository was refused: {error}"[:400], check=check, hint=hint) from error
        if isinstance(error, OSError):
            raise OperationError(
                f"cannot keep metadata: {error.strerror}", hint="free space, or remove update/tuf: it is a cache"
            ) from error


_STALE: Final = "whoever publishes has to run `casemate release refresh`; is this device's clock right?"
_AGAIN: Final = "nothing of it was used; somebody may be in between"
_RULES: Final[tuple[tuple[type[BaseException], str, str], ...]] = (
    (ExpiredMetadataError, "metadata-expired", _STALE),
    (BadVersionNumberError, "metadata-rollback", "the repository went back: " + _AGAIN),
    (UnsignedMetadataError, "metadata-threshold", _AGAIN),
    (LengthOrHashMismatchError, "metadata-digest", _AGAIN),
    (BaseException, "metadata-form", _AGAIN),
)


def _seconds(signed: Signed) -> int:
    return int(signed.expires.timestamp())
