"""What the release host keeps of each release, beside what it publishes: `private/releases/<id>/`.

header.json   what was built        content.key   the release's content key, sealed by the key `content-1`
files/        the plain files, bases of later deltas       manifest.json, mlbom.cdx.json, provenance.intoto.json
signature.json                                             recipients   one X25519 key (hex) a line
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from casemate.crypto import aead
from casemate.crypto.secret import Secret
from casemate.errors import NotFoundError, UntrustedDataError
from casemate.formats import manifest
from casemate.release import bundle, files
from casemate.release.repository import Repository
from casemate.release.roles import OF_KIND
from casemate.release.setup import CONTENT

_CONTEXT: Final = b"casemate release content key\0"


class Record(msgspec.Struct, frozen=True):
    """One release that this host published."""

    directory: Path
    header: bundle.Header
    manifest: manifest.Manifest

    @property
    def id(self) -> str:
        """The release's id."""
        return self.manifest.release


def directory_of(repository: Repository, release: str) -> Path:
    """Return where the release *release* is kept."""
    return repository.directory / "private" / "releases" / release


def save_key(repository: Repository, directory: Path, release: str, key: Secret) -> None:
    """Keep the content key, sealed."""
    with repository.keys.secret(CONTENT) as sealing:
        sealed = aead.wrap(sealing, key, _CONTEXT + release.encode())
    files.replace(directory / "content.key", sealed, mode=files.PRIVATE)


def load_key(repository: Repository, record: Record) -> Secret:
    """Return the content key of *record*.

    Raises:
        NotAuthorisedError: the passphrase of the content key is missing or wrong.
        UntrustedDataError: `release-key` the file was changed.

    """
    sealed = files.read(record.directory / "content.key", "content key", 4096)
    with repository.keys.secret(CONTENT) as sealing:
        try:
            return aead.unwrap(sealing, sealed, _CONTEXT + record.id.encode())
        except aead.TagMismatch:
            raise UntrustedDataError("the content key of the release was changed", check="release-key") from None


def records(repository: Repository) -> Iterator[Record]:
    """Yield every release kept here, in no order; what a cut left half-made is passed over."""
    for directory in (repository.directory / "private" / "releases").glob("*"):
        if (directory / "manifest.json").exists() and not directory.name.startswith("."):
            yield read(directory)


def read(directory: Path) -> Record:
    """Read one record.

    Raises:
        UntrustedDataError: it does not parse.

    """
    public = manifest.parse(files.read(directory / "manifest.json", "manifest", manifest.LIMIT)).claimed
    try:
        header = msgspec.json.decode(files.read(directory / "header.json", "release header"), type=bundle.Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UntrustedDataError("a release's header does not parse", check="bundle") from error
    return Record(directory, header, public)


def published(repository: Repository) -> list[Record]:
    """Return the releases that devices are offered now, sorted by label."""
    listed = {path for role in OF_KIND.values() for path in repository.targets(role)}
    found = [record for record in records(repository) if record.manifest.target_path in listed]
    return sorted(found, key=lambda record: record.header.label)


def find(repository: Repository, text: str) -> Record:
    """Return the release called *text*: its id, or kind/name/version.

    Raises:
        NotFoundError: there is none.

    """
    for record in records(repository):
        if text in {record.id, record.header.label}:
            return record
    raise NotFoundError(f"no release {text!r}", hint="`casemate release list` names them as kind/name/version")
