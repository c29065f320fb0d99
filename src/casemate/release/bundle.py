"""What a build hands to the release host: one deterministic tar with the files, their papers and what a person wrote.

    release.json            kind, name, version, ... and every file with its digest
    files/<name>            the release's files, sorted
    mlbom.cdx.json          provenance.intoto.json
    release.sha256          the digest of release.json

Regular files only, one spelling of every header block (`formats.archive`), no times and no owners: the same input gives
the same bytes. Reading it back checks every digest; it proves integrity, not origin, which the signature does later.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec

from casemate.durable import sync_directory
from casemate.errors import NotFoundError, OperationError, UntrustedDataError
from casemate.formats import archive, manifest
from casemate.formats.gate import Gate
from casemate.formats.signature_log import MLBOM, PROVENANCE
from casemate.release.spec import Input

SCHEMA: Final = 1
HEADER: Final = "release.json"
SEAL: Final = "release.sha256"
PREFIX: Final = "files/"
_BLOCK: Final = 1 << 20
_PAPER_LIMIT: Final = 16 << 20

Advance = Callable[[int], None]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`release.json`. `gates` are the build's; `gate` is a gated model's, left out when there is none."""

    schema: int
    kind: manifest.Kind
    name: manifest.Name
    version: manifest.Version
    security_version: manifest.SecurityVersion
    licence: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    requires: manifest.Requires
    bounds: manifest.Bounds
    smoke: Annotated[tuple[manifest.Smoke, ...], msgspec.Meta(max_length=64)]
    gates: tuple[str, ...]
    files: Annotated[tuple[manifest.File, ...], msgspec.Meta(min_length=1, max_length=manifest.FILE_LIMIT)]
    mlbom_sha256: manifest.Sha256
    provenance_sha256: manifest.Sha256
    gate: Gate | None = None

    @property
    def label(self) -> str:
        """How people call it: kind/name/version."""
        return f"{self.kind}/{self.name}/{self.version}"


class Opened(msgspec.Struct, frozen=True):
    """An unpacked bundle whose digests were checked: its header, and where its files are now."""

    header: Header
    directory: Path
    mlbom: bytes
    provenance: bytes


def write(out: Path, header: Header, inputs: Sequence[Input], papers: dict[str, bytes], advance: Advance) -> None:
    """Write the bundle to *out*, which appears whole or not at all; files must still have the digests of *header*.

    Raises:
        OperationError: it cannot be written, or a file changed meanwhile.

    """
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as target:
            _put_bytes(target, HEADER, msgspec.json.encode(header))
            for item, row in zip(inputs, header.files, strict=True):
                _put_file(target, item, row, advance)
            for name in sorted(papers):
                _put_bytes(target, name, papers[name])
            _put_bytes(target, SEAL, _seal(msgspec.json.encode(header)))
            target.write(archive.END)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(out)
        sync_directory(out.absolute().parent)
    except OSError as error:
        raise OperationError(f"cannot write {out}: {error.strerror}", hint="free space, then try again") from error
    finally:
        temporary.unlink(missing_ok=True)


def unpack(source: Path, directory: Path) -> Opened:
    """Unpack a bundle into *directory* (new) and check every byte of it.

    Raises:
        NotFoundError: there is no such bundle.
        UntrustedDataError: `bundle`, `archive-header`: damaged, or not one.

    """
    try:
        with source.open("rb") as tar:
            raw = _take(tar, HEADER)
            header = _parse(raw)
            for row in header.files:
                _extract(tar, row, directory / PREFIX / row.path)
            papers = {name: _take(tar, name) for name in sorted((MLBOM, PROVENANCE))}
            if _take(tar, SEAL) != _seal(raw):
                raise _damaged(f"{HEADER} is not what was written")
            if tar.read(len(archive.END) + 1) != archive.END:
                raise _damaged("it does not end where it should")
    except FileNotFoundError as error:
        raise NotFoundError(f"no bundle at {source}", hint="make one: `casemate release build`") from error
    wanted = {MLBOM: header.mlbom_sha256, PROVENANCE: header.provenance_sha256}
    for name, data in papers.items():
        if hashlib.sha256(data).hexdigest() != wanted[name]:
            raise _damaged(f"{name} is not what it lists")
    return Opened(header, directory / PREFIX, papers[MLBOM], papers[PROVENANCE])


def _parse(raw: bytes) -> Header:
    try:
        header = msgspec.json.decode(raw, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(f"{HEADER} does not parse: {error}") from error
    names = [row.path for row in header.files]
    unsafe = any(part in {"", ".", ".."} for name in names for part in name.split("/"))
    if header.schema != SCHEMA or names != sorted(set(names)) or unsafe or msgspec.json.encode(header) != raw:
        raise _damaged(f"{HEADER} breaks a rule")
    return header


def _seal(raw: bytes) -> bytes:
    return hashlib.sha256(raw).hexdigest().encode() + b"\n"


def _put_bytes(target: BinaryIO, name: str, data: bytes) -> None:
    target.write(archive.member_block(name, len(data), 0))
    target.write(data + bytes(archive.padding(len(data))))


def _put_file(target: BinaryIO, item: Input, row: manifest.File, advance: Advance) -> None:
    target.write(archive.member_block(PREFIX + row.path, row.size, 0))
    digest, size = hashlib.sha256(), 0
    with item.path.open("rb") as source:
        while piece := source.read(_BLOCK):
            digest.update(piece)
            size += len(piece)
            target.write(piece)
            advance(len(piece))
    if (size, digest.hexdigest()) != (row.size, row.sha256):
        raise OperationError(f"{item.path} changed while it was released", hint="build again")
    target.write(bytes(archive.padding(size)))


def _take(tar: BinaryIO, name: str) -> bytes:
    member = archive.parse_block(tar.read(archive.BLOCK), 0)
    if member is None or member.path != name or member.size > _PAPER_LIMIT:
        raise _damaged(f"{name} is not where it should be")
    data = tar.read(member.size)
    if len(data) != member.size or tar.read(archive.padding(member.size)).strip(b"\0"):
        raise _damaged("it was cut off")
    return data


def _extract(tar: BinaryIO, row: manifest.File, path: Path) -> None:
    member = archive.parse_block(tar.read(archive.BLOCK), 0)
    if member is None or (member.path, member.size) != (PREFIX + row.path, row.size):
        raise _damaged(f"{row.path} is not where it should be")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), row.size
    with path.open("xb") as target:
        while left and (piece := tar.read(min(left, _BLOCK))):
            digest.update(piece)
            target.write(piece)
            left -= len(piece)
    if left or digest.hexdigest() != row.sha256 or tar.read(archive.padding(row.size)).strip(b"\0"):
        raise _damaged(f"{row.path} is not what it lists")


def _damaged(what: str) -> UntrustedDataError:
    return UntrustedDataError(f"the bundle was refused: {what}", check="bundle", hint="build it again")
