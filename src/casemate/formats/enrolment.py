"""What a device must know to trust a fleet, and how it learns it: the token, the charter, the bundle.

A token is one line, `cmf1.<secret>.<fingerprint>`: 32 random bytes that enrol one device once, and the SHA-256 of the
fleet's root certificate (DER), both base64url. The device sends the token to nobody but a server whose chain ends in
that root; the server keeps a hash of the whole line.

The charter is signed by the fleet's root, once: it names the keys that speak for the fleet beside TLS. A server's
listener cannot replace them, so it cannot command a device.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Annotated, Final, Literal

import msgspec

from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED
from casemate.formats.envelope import FleetId, Moment, parse, require_signature, seal
from casemate.formats.tlog import VerifierKey

CHARTER_TYPE: Final = "application/vnd.casemate.charter.v1+json"
TOKEN_MARK: Final = "cmf1"  # noqa: S105 - the format's name
SECRET_BYTES: Final = 32
BUNDLE_LIMIT: Final = 64 * 1024


class Token(msgspec.Struct, frozen=True):
    """A one-time token, taken apart."""

    text: str
    root_sha256: bytes

    def __repr__(self) -> str:
        """Keep the secret out of logs."""
        return "Token(***)"


class Charter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who speaks for the fleet: the Ed25519 keys of commands and of picks, and the vkey that cosigns journals.

    `director` is absent in the charter of a fleet that gives no picks: its devices take updates by themselves.
    """

    schema: Literal[1]
    fleet: FleetId
    command: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    witness: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    issued: Moment
    director: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)] | None = None


class VerifiedCharter(msgspec.Struct, frozen=True):
    """A charter that the pinned root has signed."""

    charter: Charter
    witness: VerifierKey


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """`GET /device/v1/enroll/bundle`: the charter's envelope, and where devices connect (https://HOST:PORT)."""

    schema: Literal[1]
    charter: bytes
    devices: Annotated[str, msgspec.Meta(max_length=300)]


_ADDRESS: Final = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[1-9][0-9]{0,4})?\Z")
_encoder: Final = msgspec.json.Encoder(order="sorted")
_charters: Final = msgspec.json.Decoder(Charter)
_bundles: Final = msgspec.json.Decoder(Bundle)


def make_token(secret: bytes, root: bytes) -> str:
    """Return the token of *secret* (32 random bytes) for the fleet with the certificate *root* (DER)."""
    if len(secret) != SECRET_BYTES:
        raise ValueError("a token's secret has 32 bytes")
    return f"{TOKEN_MARK}.{_short(secret)}.{_short(hashlib.sha256(root).digest())}"


def parse_token(text: str) -> Token:
    """Read a token (surrounding white space is ignored).

    Raises:
        UntrustedDataError: `token-form`.

    """
    line = text.strip()
    parts = line.split(".")
    if len(parts) != 3 or parts[0] != TOKEN_MARK or _long(parts[1]) is None:  # noqa: PLR2004 - mark, secret, pin
        raise _bad_token()
    pin = _long(parts[2])
    if pin is None:
        raise _bad_token()
    return Token(line, pin)


def _bad_token() -> UntrustedDataError:
    return UntrustedDataError(
        "this is not an enrolment token", check="token-form", hint="whoever runs the fleet's server makes them"
    )


def sign_charter(charter: Charter, root: EcKey) -> bytes:
    """Return the envelope of *charter*, signed by the fleet's root key."""
    return seal(_encoder.encode(charter), CHARTER_TYPE, root)


def verify_charter(raw: bytes, root: EcPublic) -> VerifiedCharter:
    """Check a charter with the key of the pinned *root*.

    Raises:
        UntrustedDataError: `envelope-*`, `charter-form`, `vkey`.

    """
    envelope = parse(raw, CHARTER_TYPE)
    require_signature(envelope, CHARTER_TYPE, root)
    try:
        charter = _charters.decode(envelope.payload)
    except MALFORMED as error:
        raise UntrustedDataError(f"the charter is not well-formed: {error}", check="charter-form") from error
    return VerifiedCharter(charter, VerifierKey.parse(charter.witness))


def encode_bundle(bundle: Bundle) -> bytes:
    """Return the answer's bytes."""
    return _encoder.encode(bundle)


def parse_bundle(raw: bytes) -> Bundle:
    """Read what the enrolment listener answered; its charter is not proven yet.

    Raises:
        UntrustedDataError: `bundle-form`.

    """
    try:
        if len(raw) > BUNDLE_LIMIT:
            raise ValueError("too large")  # noqa: TRY301 - one place turns every fault into the same refusal
        bundle = _bundles.decode(raw)
    except (*MALFORMED, ValueError) as error:
        raise UntrustedDataError(f"the enrolment bundle is not well-formed: {error}", check="bundle-form") from error
    if not _ADDRESS.match(bundle.devices):
        raise UntrustedDataError("the enrolment bundle names no https address", check="bundle-form")
    return bundle


def _short(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _long(text: str) -> bytes | None:
    """Read 32 bytes of base64url in their one spelling."""
    try:
        data = base64.urlsafe_b64decode(text.encode("ascii") + b"=")
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == SECRET_BYTES and _short(data) == text else None
