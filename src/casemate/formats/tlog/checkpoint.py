"""Checkpoints (C2SP tlog-checkpoint 1.0): `origin`, size and root of a log, as a signed note."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Sequence
from typing import Final

from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats.tlog import note
from casemate.formats.tlog.hashes import EMPTY_ROOT, HASH_SIZE

MAX_SIZE: Final = 2**63 - 1
_SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\Z")


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A commitment: the log called *origin* had *size* entries whose tree has this *root*."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, key: SigningKey) -> bytes:
        """Return the signed note; the key's name is the origin."""
        return note.sign(self.text(), self.origin, key)


def open_checkpoint(data: bytes, known: Sequence[note.VerifierKey], *, origin: str | None = None) -> Checkpoint:
    """Verify and read a checkpoint; *origin* None takes the first known key's name.

    Raises:
        UntrustedDataError: `checkpoint-signature`, `checkpoint-format` or `checkpoint-origin`.

    """
    try:
        text = note.open_note(data, known)
    except UntrustedDataError as error:
        kind = "checkpoint-signature" if error.check == "note-signature" else "checkpoint-format"
        raise UntrustedDataError(error.message, check=kind) from error
    checkpoint = parse_text(text)
    wanted = known[0].name if origin is None else origin
    if checkpoint.origin != wanted:
        raise UntrustedDataError(f"a checkpoint of {checkpoint.origin!r}, not {wanted!r}", check="checkpoint-origin")
    return checkpoint


def parse_text(text: str) -> Checkpoint:
    """Read a checkpoint's text; extension lines after the root are allowed and ignored.

    Raises:
        UntrustedDataError: `checkpoint-format`.

    """
    lines = text.split("\n")
    if len(lines) < 4 or not lines[0] or not _SIZE.match(lines[1]):  # noqa: PLR2004 - origin, size, root, end
        raise UntrustedDataError("a checkpoint is origin, size and root", check="checkpoint-format")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UntrustedDataError("a checkpoint's root is not base64", check="checkpoint-format") from error
    size = int(lines[1])
    if len(root) != HASH_SIZE or size > MAX_SIZE or (size == 0 and root != EMPTY_ROOT):
        raise UntrustedDataError("a checkpoint's root does not fit its size", check="checkpoint-format")
    return Checkpoint(lines[0], size, root)
