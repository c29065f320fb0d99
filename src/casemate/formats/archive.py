"""A backup's bytes: a plain tar of regular files, between a header that says what comes and a manifest of digests.

    casemate-backup.json    what this is: home, schema, when, how many files and bytes, whether it holds keys
    home.json, keystore/keystore.json, models/*, apps/*, journal/...
    manifest.json           path, size and SHA-256 of every file before it

Any tar program can list and unpack it. Reading it back is stricter than tar: only the header block that this module
would write for that name and size is accepted, so there are no links, devices, owners, sparse files, extended headers
or second spellings of a size to interpret. A path is accepted when a home may hold it, and once.

The digests find damage, not forgery: whoever can write the archive can write its manifest. What must not be forged is
protected inside: containers and keystore by their keys, the journal by its signatures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final, TypeVar

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED

SCHEMA: Final = 1
HEADER: Final = "casemate-backup.json"
MANIFEST: Final = "manifest.json"
BLOCK: Final = 512
HEADER_LIMIT: Final = 4096
MANIFEST_LIMIT: Final = 64 << 20
FILE_LIMIT: Final = 1 << 40
MEMBER_LIMIT: Final = 300_000
END: Final = bytes(2 * BLOCK)
_OCTAL_LIMIT: Final = 8**11

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_PATH: Final = re.compile(
    rf"(home\.json|keystore/keystore\.json|models/{_PART}\.cmodel|apps/(apps\.json|{_PART}\.toml)"
    rf"|journal/({_PART}/){{0,8}}{_PART})\Z"
)
_PATH_LIMIT: Final = 200

Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=FILE_LIMIT)]
Text = Annotated[str, msgspec.Meta(max_length=64)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`casemate-backup.json`. *files* and *bytes* count what comes between it and the manifest."""

    schema: int
    home: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    home_schema: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    version: Text
    created: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    keys: Annotated[str, msgspec.Meta(pattern=r"\A(recovery|none)\Z")]
    files: Annotated[int, msgspec.Meta(ge=1, le=MEMBER_LIMIT)]
    bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the manifest."""

    path: Annotated[str, msgspec.Meta(max_length=_PATH_LIMIT)]
    size: Size
    sha256: Digest


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.json`: every file before it, the header first, in the order of the archive."""

    schema: int
    files: Annotated[tuple[Row, ...], msgspec.Meta(max_length=MEMBER_LIMIT + 1)]


class Member(msgspec.Struct, frozen=True):
    """One file of the archive, as its block says."""

    path: str
    size: int


Document = TypeVar("Document", Header, Manifest)


def is_home_path(path: str) -> bool:
    """Whether a home may hold a file called *path*, relative to its top (no part of it begins with a dot)."""
    return len(path) <= _PATH_LIMIT and bool(_PATH.match(path))


def member_block(path: str, size: int, created: int) -> bytes:
    """Return the tar header of a regular file (ustar; sizes over 8 GiB as GNU tar writes them).

    Raises:
        ValueError: the name does not fit.

    """
    prefix, name = _split(path)
    fields = (
        name.ljust(100, b"\0"),
        b"0000600\0" + b"0000000\0" * 2,
        _number(size),
        f"{created:011o}\0".encode("ascii"),
        b" " * 8,
        b"0",
        bytes(100),
        b"ustar\x0000",
        bytes(64),
        b"0000000\0" * 2,
        prefix.ljust(155, b"\0"),
        bytes(12),
    )
    block = b"".join(fields)
    return block[:148] + f"{sum(block):06o}\0 ".encode("ascii") + block[156:]


def _split(path: str) -> tuple[bytes, bytes]:
    raw = path.encode("ascii")
    if len(raw) <= 100:  # noqa: PLR2004 - ustar's name field
        return b"", raw
    cut = raw.find(b"/", len(raw) - 101)
    if cut < 0 or cut > 155:  # noqa: PLR2004 - ustar's prefix field
        raise ValueError(f"{path} is too long for the archive")
    return raw[:cut], raw[cut + 1 :]


def _number(size: int) -> bytes:
    if size < _OCTAL_LIMIT:
        return f"{size:011o}\0".encode("ascii")
    return b"\x80" + size.to_bytes(11, "big")


def parse_block(block: bytes, created: int | None = None) -> Member | None:
    """Read one header block; None for the end block. Its time must be *created*, when that is known already.

    Raises:
        UntrustedDataError: `archive-header`: not a block that `member_block` writes.

    """
    if block == bytes(BLOCK):
        return None
    try:
        name, prefix = (field.rstrip(b"\0").decode("ascii") for field in (block[:100], block[345:500]))
        path = f"{prefix}/{name}" if prefix else name
        size = int.from_bytes(block[125:136], "big") if block[124] == 0x80 else int(block[124:135], 8)  # noqa: PLR2004
        stamp = int(block[136:147], 8)
        exact = len(block) == BLOCK and block == member_block(path, size, stamp if created is None else created)
    except (ValueError, IndexError):
        exact = False
    if not exact or size > FILE_LIMIT:
        raise refused("a header block is damaged, or not of a casemate backup", "archive-header")
    return Member(path, size)


def padding(size: int) -> int:
    """Return how many zero bytes follow a file of *size* bytes."""
    return -size % BLOCK


def archive_size(members: Iterator[tuple[str, int]]) -> int:
    """Return the length of an archive with these paths and sizes, in bytes."""
    return sum(BLOCK + size + padding(size) for _, size in members) + len(END)


def encode(document: Header | Manifest) -> bytes:
    """Return a document's bytes."""
    return msgspec.json.encode(document) + b"\n"


def parse(data: bytes, kind: type[Document]) -> Document:
    """Read the header or the manifest.

    Raises:
        UntrustedDataError: `archive-format`.

    """
    name = HEADER if kind is Header else MANIFEST
    try:
        document = msgspec.json.decode(data, type=kind)
    except MALFORMED as error:
        raise refused(f"{name} does not parse: {error}", "archive-format") from error
    if document.schema != SCHEMA:
        raise refused(f"{name} has schema {document.schema}; this casemate reads {SCHEMA}", "archive-format")
    return document


def refused(what: str, check: str) -> UntrustedDataError:
    """Return the refusal of an archive; nothing of it is kept."""
    return UntrustedDataError(what, check=check, hint="nothing was restored; use another copy of the backup")
