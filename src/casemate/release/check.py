"""Checking a repository as a stranger would, and then, with the content key, as a device would."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from casemate.errors import UntrustedDataError
from casemate.formats import channel_set, manifest, signature_log, tlog
from casemate.release import channels, files, sign, store
from casemate.release.repository import Repository
from casemate.release.roles import DELEGATED

_BASE = "file://"


class Checked(msgspec.Struct, frozen=True):
    """What was found good. *signatures* counts releases whose signature was proven too (it is sealed)."""

    releases: tuple[str, ...]
    channels: tuple[str, ...]
    chunks: int
    log_entries: int
    signatures: int


class _Files(FetcherInterface):
    """Answers as a static web server over `public/` would."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield (self._root / url.removeprefix(_BASE)).read_bytes()
        except FileNotFoundError:
            raise DownloadHTTPError("not there", 404) from None


def check(repository: Repository, *, deep: bool) -> Checked:
    """Follow the metadata from the first root, read every target and chunk; *deep* also opens the sealed parts.

    Raises:
        UntrustedDataError: names what failed.
        NotAuthorisedError: *deep* without the passphrase of the content key.

    """
    with tempfile.TemporaryDirectory() as scratch:
        client = _client(repository, Path(scratch))
        paths = [path for role in DELEGATED for path in repository.targets(role.name)]
        fetched = {path: _fetch(client, path, Path(scratch)) for path in [*paths, signature_log.TRUST_PATH]}
    trust = signature_log.parse_trust(fetched.pop(signature_log.TRUST_PATH))
    releases, names, chunks, signatures = [], [], 0, 0
    for path, data in sorted(fetched.items()):
        if path.startswith("channels/"):
            names.append(channel_set.parse(data).claimed.channel)
            continue
        claimed = manifest.parse(data)
        public = manifest.verify(claimed, path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest()).manifest
        chunks += _check_chunks(repository, public)
        if deep:
            _check_signature(repository, public, trust)
            signatures += 1
        releases.append(f"{public.kind}/{public.name}/{public.version}")
    _check_channels(repository, names)
    return Checked(tuple(releases), tuple(sorted(names)), chunks, _check_log(repository, trust), signatures)


def _client(repository: Repository, scratch: Path) -> Updater:
    first = files.read(repository.metadata / "1.root.json", "first root")
    client = Updater(
        str(scratch), _BASE + "metadata/", str(scratch), _BASE + "targets/", _Files(repository.public), bootstrap=first
    )
    try:
        client.refresh()
    except (RepositoryError, DownloadError) as error:
        raise UntrustedDataError(
            f"the metadata was refused: {error}",
            check="tuf-metadata",
            hint="when it expired: `casemate release refresh DIR`",
        ) from error
    return client


def _fetch(client: Updater, path: str, scratch: Path) -> bytes:
    try:
        info = client.get_targetinfo(path)
        if info is None:
            raise UntrustedDataError(f"no role may sign for {path}", check="tuf-target")
        return Path(client.download_target(info, str(scratch / "target"))).read_bytes()
    except (RepositoryError, DownloadError) as error:
        raise UntrustedDataError(f"{path} was refused: {error}", check="tuf-target") from error


def _check_chunks(repository: Repository, public: manifest.Manifest) -> int:
    listed = [(chunk.path, chunk.size, chunk.sha256) for item in public.payloads for chunk in item.chunks]
    listed.append((public.sealed.path, public.sealed.size, public.sealed.sha256))
    for path, size, sha256 in listed:
        data = files.read(repository.public / path, "chunk")
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise UntrustedDataError(f"{path} is not what its name says", check="chunk-digest")
    return len(listed)


def _check_signature(repository: Repository, public: manifest.Manifest, trust: signature_log.SigningTrust) -> None:
    record = store.find(repository, public.release)
    with store.load_key(repository, record) as key:
        sealed = files.read(repository.public / public.sealed.path, "sealed part")
        signature_log.verify_part(manifest.open_sealed(public, sealed, key), trust)


def _check_channels(repository: Repository, names: list[str]) -> None:
    for name in names:
        held = channels.current(repository, name)
        for member in held.members if held else ():
            offered = any(record.manifest.release == member.release for record in store.published(repository))
            if held and not held.stop and not offered:
                raise UntrustedDataError(f"channel {name} offers {member.target_path}, which is gone", check="channel")


def _check_log(repository: Repository, trust: signature_log.SigningTrust) -> int:
    log = sign.log_of(repository)
    trusted = [tlog.VerifierKey.parse(text) for text in trust.logs if text.startswith(log.origin + "+")]
    if not trusted:
        raise UntrustedDataError("devices do not trust the log of signatures", check="signature-log")
    return len(log.entries(trusted[0]))
