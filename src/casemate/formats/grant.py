"""A grant: the content key of one release, sealed to one device. Published at `grants/<release>/<recipient>.json`.

HPKE base mode says nothing about who sealed it: a grant gives secrecy, never authenticity. What a release *is* comes
from signed metadata (`formats.manifest`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated, Final, Literal

import msgspec

from casemate.crypto import hpke
from casemate.crypto.aead import TagMismatch
from casemate.crypto.secret import Secret
from casemate.errors import NotAuthorisedError, UntrustedDataError, UsageError
from casemate.formats.decoding import MALFORMED

PREFIX: Final = "x25519:"
LIMIT: Final = 4096
CONTENT_KEY_BYTES: Final = 32
_PURPOSE: Final = b"casemate/1/release-grant"

Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`suite` names how `sealed` (encapsulation and ciphertext, base64) was made; a hybrid suite gets its own name."""

    schema: Literal[1]
    release: Id
    recipient: Id
    suite: Literal["x25519-hkdf-sha256-aes256gcm"]
    sealed: Annotated[bytes, msgspec.Meta(min_length=80, max_length=80)]


def recipient_id(public: bytes) -> str:
    """Name a recipient: 32 hex digits of the SHA-256 of its X25519 public key."""
    return hashlib.sha256(public).hexdigest()[:32]


def show_recipient(public: bytes) -> str:
    """Return how people pass a recipient (its public key) on."""
    return PREFIX + base64.urlsafe_b64encode(public).decode().rstrip("=")


def parse_recipient(text: str) -> bytes:
    """Read a recipient's public key, as `show_recipient` makes it.

    Raises:
        UsageError: it is not one.

    """
    try:
        public = base64.b64decode(text.strip().removeprefix(PREFIX) + "=", altchars=b"-_", validate=True)
        if len(public) != hpke.PUBLIC_BYTES:
            raise ValueError("32 bytes are needed")  # noqa: TRY301 - one refusal for every way to be wrong
        hpke.seal(public, b"", b"", b"")  # refuses points of small order
    except (binascii.Error, ValueError) as error:
        raise UsageError(
            f"{text[:60]!r} is not a recipient", hint="a device or a gated model's fleet shows it: x25519:..."
        ) from error
    return public


def path(release: str, recipient: str) -> str:
    """Return where a grant is published."""
    return f"grants/{release}/{recipient}.json"


def make(content_key: Secret, release: str, public: bytes) -> bytes:
    """Seal the content key of *release* to the X25519 key *public*; returns the file.

    Raises:
        ValueError: *public* is not a usable key.

    """
    sealed = hpke.seal(public, _PURPOSE, _context(release, public), content_key.view())
    return msgspec.json.encode(Grant(1, release, recipient_id(public), "x25519-hkdf-sha256-aes256gcm", sealed))


def open_grant(raw: bytes, release: str, private: Secret, public: bytes) -> Secret:
    """Take the content key of *release* out of a grant file.

    Raises:
        UntrustedDataError: `grant-form` it is not a grant, or not for this release.
        NotAuthorisedError: it is for another device, or was changed.

    """
    if len(raw) > LIMIT:
        raise UntrustedDataError("the grant is too large", check="grant-form")
    try:
        grant = _decoder.decode(raw)
    except MALFORMED as error:
        raise UntrustedDataError(f"the grant is not well-formed: {error}", check="grant-form") from error
    if grant.release != release:
        raise UntrustedDataError("the grant is for another release", check="grant-form", hint="fetch it again")
    try:
        opened = hpke.open(private, _PURPOSE, _context(release, public), grant.sealed)
    except TagMismatch:
        raise NotAuthorisedError(
            "the grant does not open with this device's key",
            hint="whoever publishes the release has to grant it to this device's key",
        ) from None
    return Secret(opened)


_decoder: Final = msgspec.json.Decoder(Grant)


def _context(release: str, public: bytes) -> bytes:
    return bytes.fromhex(release) + public
