"""Reading a release repository as the fleet's server: TUF metadata verified from a root that a person gave.

The server believes of a repository what any device would: signatures by enough keys, nothing expired, nothing older
than it saw before. It reads signed sets and the names of manifests; payloads it never touches. What it saw is kept in
the database, so a replica that reads next cannot be led back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import urllib3

# python-tuf re-exports some of these without saying so
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Targets  # type: ignore[attr-defined]
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from casemate.errors import NotFoundError, OperationError, UntrustedDataError, UsageError
from casemate.formats import channel_set
from casemate.formats.channel_set import ChannelSet

CHANNELS: Final = "channels"
_MAX_FILE: Final = 5 << 20
_MAX_CHANNELS: Final = 64
_SECONDS: Final = 20.0
_MISSING: Final = 404
_HISTORY: Final = "root_history"


class Seen(msgspec.Struct, frozen=True):
    """One channel as signed metadata has it now. *missing*: members whose manifest is no target any more: yanked."""

    set: ChannelSet
    target_sha256: str
    target_length: int
    missing: tuple[str, ...]


class Reading(msgspec.Struct, frozen=True):
    """A whole repository at one moment. *metadata*: python-tuf's files by name; *expires*: the first role that does."""

    channels: tuple[Seen, ...]
    metadata: Mapping[str, str]
    expires: float


def place_of(text: str) -> str:
    """Return where a repository is: an https address without its last slash, or an absolute directory.

    Raises:
        UsageError: neither.

    """
    if "://" in text:
        parts = urlsplit(text)
        loopback = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"}
        if not (parts.scheme == "https" or loopback) or not parts.hostname or parts.query or parts.username:
            raise UsageError(f"{text} is no https address", hint="where `casemate release publish` puts its files")
        return text.rstrip("/")
    directory = Path(text).absolute()
    public = directory / "public"
    chosen = public if (public / "metadata").is_dir() else directory
    if not (chosen / "metadata").is_dir():
        raise UsageError(f"{text} is no release repository", hint="name its directory, or what a web server serves")
    return str(chosen)


def read(place: str, root: bytes, metadata: Mapping[str, str]) -> Reading:
    """Read what the repository at *place* offers now; *metadata* is what was seen of it before. Blocks.

    Raises:
        UntrustedDataError: `release-metadata` a rule of TUF is broken (signatures, expiry, rollback);
            `channel-set-*` a set is not what it must be.
        OperationError: it cannot be reached.

    """
    with tempfile.TemporaryDirectory(prefix="casemate-tuf-") as scratch:
        cache, targets = Path(scratch) / "metadata", Path(scratch) / "targets"
        for directory in (cache, cache / _HISTORY, targets):
            directory.mkdir()
        for name, text in metadata.items():
            (cache / name).write_text(text, encoding="utf-8")
        try:
            updater = Updater(
                str(cache), f"{place}/metadata/", str(targets), f"{place}/targets/", _Fetcher(place), bootstrap=root
            )
            updater.refresh()
            updater.get_targetinfo(channel_set.path(CHANNELS))  # loads the role that signs channels
            seen = tuple(_channel(updater, path) for path in _paths(cache))
        except (RepositoryError, ValueError, RecursionError) as error:
            raise UntrustedDataError(
                f"the release repository was refused: {error}"[:400],
                check="release-metadata",
                hint="expired? `casemate release refresh` on the release host; otherwise somebody is in between",
            ) from error
        except (DownloadError, OSError) as error:
            raise OperationError(f"the release repository cannot be read: {error}"[:400]) from error
        ends = min(_expiry(each.read_text(encoding="utf-8")) for each in cache.glob("*.json"))
        kept = [each for each in cache.rglob("*.json") if not each.is_symlink()]
        files = {str(each.relative_to(cache)): each.read_text(encoding="utf-8") for each in kept}
    return Reading(seen, files, ends)


def _paths(cache: Path) -> list[str]:
    """Return every channel that the role of channels signs for."""
    file = cache / f"{CHANNELS}.json"
    if not file.exists():
        return []
    metadata: Metadata[Any] = Metadata.from_file(str(file))
    signed = metadata.signed
    if not isinstance(signed, Targets) or len(signed.targets) > _MAX_CHANNELS:
        raise UntrustedDataError(f"a repository has at most {_MAX_CHANNELS} channels", check="release-metadata")
    return sorted(path for path in signed.targets if path.startswith(f"{CHANNELS}/"))


def _channel(updater: Updater, path: str) -> Seen:
    info = updater.get_targetinfo(path)
    if info is None or info.length > channel_set.LIMIT:
        raise UntrustedDataError(f"{path} is no channel", check="channel-set-form")
    raw = Path(updater.download_target(info)).read_bytes()
    parsed = channel_set.parse(raw)
    name = path.removeprefix(f"{CHANNELS}/").removesuffix(".json")
    verified = channel_set.verify(parsed, channel=name, size=info.length, sha256=info.hashes.get("sha256", ""))
    missing = tuple(member.target_path for member in verified.set.members if not _published(updater, member))
    return Seen(verified.set, verified.sha256, info.length, missing)


def _published(updater: Updater, member: channel_set.Member) -> bool:
    """Whether signed metadata names the manifest that the set means."""
    info = updater.get_targetinfo(member.target_path)
    return info is not None and info.hashes.get("sha256") == member.manifest_sha256


def _expiry(text: str) -> float:
    metadata: Metadata[Any] = Metadata.from_bytes(text.encode())
    return float(metadata.signed.expires.timestamp())


class _Fetcher(FetcherInterface):
    """Gives python-tuf bytes from a web server or a directory, and from nowhere outside it."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._pool = urllib3.PoolManager(timeout=_SECONDS, retries=False) if "://" in place else None

    def _fetch(self, url: str) -> Iterator[bytes]:
        if not url.startswith(self._place + "/"):
            raise DownloadError(f"{url} is outside of the repository")
        yield self._from_server(url) if self._pool else self._from_disk(url)

    def _from_server(self, url: str) -> bytes:
        assert self._pool
        try:
            answer = self._pool.request("GET", url, preload_content=False, redirect=False, decode_content=False)
            data: bytes = answer.read(_MAX_FILE + 1)
            answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"no answer from {urlsplit(url).netloc}") from error
        if answer.status != 200:  # noqa: PLR2004 - OK
            raise DownloadHTTPError(f"{url}: status {answer.status}", answer.status)
        return data

    def _from_disk(self, url: str) -> bytes:
        place = Path(self._place).resolve()
        path = Path(url).resolve()
        if not path.is_relative_to(place):
            raise DownloadError(f"{url} is outside of the repository")
        try:
            with path.open("rb") as file:
                return file.read(_MAX_FILE + 1)
        except FileNotFoundError as error:
            raise DownloadHTTPError(f"{path.name} is not there", _MISSING) from error


def require_root(raw: bytes) -> bytes:
    """Check that *raw* is a root signed by as many of its own keys as it asks for.

    Raises:
        UntrustedDataError: `release-root`.

    """
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(raw)
        metadata.signed.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError, AttributeError, RecursionError) as error:
        raise UntrustedDataError(
            "this is no root of a release repository",
            check="release-root",
            hint="take `public/metadata/1.root.json` from the release host itself",
        ) from error
    return raw


def require_source(found: Any) -> Any:
    """Return *found*, the row of the source.

    Raises:
        NotFoundError: this fleet believes no repository yet.

    """
    if found is None:
        raise NotFoundError(
            "this fleet knows no release repository yet",
            hint="`casemate fleet release import DIR|URL --root 1.root.json`",
        )
    return found
