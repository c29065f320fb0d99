"""Signed notes (C2SP signed-note 1.0): a text, a blank line, and one line per signature.

Rules for reading, in this order: the size is bounded; the text is UTF-8 without control characters but newline;
signatures stand after the *last* blank line; a signature by an unknown key is ignored; a signature by a known key that
does not fit refuses the whole note; a note with no signature by a known key is refused.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import Final

from casemate.crypto import signing
from casemate.errors import UntrustedDataError

MAX_NOTE_BYTES: Final = 64 * 1024
MAX_SIGNATURES: Final = 64
_ED25519: Final = 1
MARK: Final = "\u2014 "
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,128}\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class VerifierKey:
    """A name and an Ed25519 public key; written `name+hash+base64` (a vkey)."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        """Refuse a name that would be ambiguous in a note."""
        if not _NAME.match(self.name):
            raise UntrustedDataError(f"{self.name[:40]!r} is no name for a log key", check="vkey")

    @property
    def key_id(self) -> bytes:
        """Return the 4 bytes that point from a signature line to this key."""
        kind = bytes([_ED25519])
        return hashlib.sha256(self.name.encode() + b"\n" + kind + self.public).digest()[:4]

    def __str__(self) -> str:
        """Return the vkey."""
        body = base64.b64encode(bytes([_ED25519]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{body}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read a vkey.

        Raises:
            UntrustedDataError: `vkey` it is malformed, not Ed25519, or its hash does not fit.

        """
        name, _, rest = text.strip().partition("+")
        digest, _, body = rest.partition("+")
        raw = _unbase64(body, "vkey")
        if len(raw) != 1 + signing.PUBLIC_LENGTH or raw[0] != _ED25519:
            raise UntrustedDataError("the log key is not an Ed25519 vkey", check="vkey")
        key = cls(name, raw[1:])
        if key.key_id.hex() != digest:
            raise UntrustedDataError("the log key's hash does not fit its name and bytes", check="vkey")
        return key


def sign(text: str, name: str, key: signing.SigningKey) -> bytes:
    """Return the note of *text* (ends in a newline) signed as *name*."""
    if not text.endswith("\n"):
        raise ValueError("a note's text ends in a newline")
    verifier = VerifierKey(name, key.public)
    blob = base64.b64encode(verifier.key_id + key.sign(text.encode())).decode()
    return f"{text}\n{MARK}{name} {blob}\n".encode()


def open_note(data: bytes, known: Sequence[VerifierKey]) -> str:
    """Return the text of a note signed by at least one of *known*.

    Raises:
        UntrustedDataError: `note-format` malformed; `note-signature` no known signature, or one that does not fit.

    """
    text, lines = split(data)
    trusted = 0
    for line in lines:
        name, key_id, signature = parse_signature(line)
        for key in known:
            if (key.name, key.key_id) == (name, key_id):
                if not signing.verify(key.public, signature, text.encode()):
                    raise UntrustedDataError(f"the signature of {name} does not fit the text", check="note-signature")
                trusted += 1
    if not trusted:
        raise UntrustedDataError("the note has no signature by a known key", check="note-signature")
    return text


def split(data: bytes) -> tuple[str, list[str]]:
    """Return the text (with its last newline) and the signature lines, unverified.

    Raises:
        UntrustedDataError: `note-format`.

    """
    if len(data) > MAX_NOTE_BYTES:
        raise UntrustedDataError("the note is too large", check="note-format")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UntrustedDataError("the note is not UTF-8", check="note-format") from error
    if any(char < " " and char != "\n" for char in whole) or "\x7f" in whole:
        raise UntrustedDataError("the note holds a control character", check="note-format")
    body, blank, tail = whole.rpartition("\n\n")
    lines = tail.split("\n")
    if not blank or not tail.endswith("\n") or not 1 <= len(lines) - 1 <= MAX_SIGNATURES:
        raise UntrustedDataError("the note has no signature lines", check="note-format")
    return body + "\n", lines[:-1]


def parse_signature(line: str) -> tuple[str, bytes, bytes]:
    """Take a signature line apart: the signer's name, the 4 bytes of its key, the signature.

    Raises:
        UntrustedDataError: `note-format`.

    """
    if not line.startswith(MARK):
        raise UntrustedDataError("a signature line does not begin with a dash", check="note-format")
    name, space, body = line.removeprefix(MARK).partition(" ")
    raw = _unbase64(body, "note-format")
    if not space or not _NAME.match(name) or len(raw) <= 4:  # noqa: PLR2004 - the key id alone is no signature
        raise UntrustedDataError("a signature line is malformed", check="note-format")
    return name, raw[:4], raw[4:]


def _unbase64(text: str, check: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UntrustedDataError("not standard base64", check=check) from error
