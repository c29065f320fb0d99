"""Attestation results: EAR as a JWT (draft-ietf-rats-ear-04), ES256, one AR4SI trustworthiness vector per part.

A result lives at most fifteen minutes: a verifier that dies must not leave a "good" behind. Reading is as narrow as
writing: one algorithm, one type, one profile; nothing in the header chooses a key.
"""

from __future__ import annotations

import base64
import binascii
from enum import IntEnum
from typing import Annotated, Any, Final, Literal

import msgspec

from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED

MAX_LIFE: Final = 900
LIMIT: Final = 64 * 1024
PROFILE: Final = "tag:casemate,2026:ear/1"
_HEADER: Final = b'{"alg":"ES256","typ":"JWT"}'
_SIGNATURE_BYTES: Final = 64


class Tier(IntEnum):
    """AR4SI's trust tiers, by the value a claim has at the top of each; NONE: no claim is made."""

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96

    @property
    def status(self) -> str:
        """Return the name an EAR uses."""
        return self.name.lower()


Claim = Annotated[int, msgspec.Meta(ge=-128, le=127)]
Status = Literal["none", "affirming", "warning", "contraindicated"]


class TrustVector(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="kebab"):
    """AR4SI 2.3.4: what is claimed about each aspect; 0 claims nothing."""

    instance_identity: Claim = 0
    configuration: Claim = 0
    executables: Claim = 0
    file_system: Claim = 0
    hardware: Claim = 0
    runtime_opaque: Claim = 0
    storage_opaque: Claim = 0
    sourced_data: Claim = 0


class SubModule(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={
        "status": "ear.status",
        "vector": "ear.trustworthiness-vector",
        "policy": "ear.appraisal-policy-id",
        "reasons": "casemate.reasons",
    },
):
    """The result for one part of the device, and why."""

    status: Status
    vector: TrustVector
    policy: str
    reasons: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()


class Verifier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who judged."""

    developer: str
    build: str


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"thumbprint": "x5t#S256"}):
    """RFC 8705: the certificate (base64url SHA-256) of whom this is about; of no use to anybody else."""

    thumbprint: str


class Ear(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"verifier": "ear.verifier-id"}):
    """The claims. `sub` is the device, `iat` and `exp` are Unix seconds, `level` is the assurance it comes to."""

    eat_profile: Literal["tag:casemate,2026:ear/1"]
    iat: int
    exp: int
    verifier: Verifier
    submods: Annotated[dict[str, SubModule], msgspec.Meta(min_length=1, max_length=16)]
    eat_nonce: str
    sub: str
    cnf: Confirmation
    level: Literal["L0", "L1", "L2", "L3"]

    @property
    def status(self) -> Status:
        """Return the worst of the parts: an unclaimed part is as bad as a contraindicated one is."""
        return worst([module.status for module in self.submods.values()])


_decoder: Final = msgspec.json.Decoder(Ear)
_encoder: Final = msgspec.json.Encoder()
_ORDER: Final[tuple[Status, ...]] = ("affirming", "warning", "none", "contraindicated")


def worst(statuses: list[Status]) -> Status:
    """Return the worst of *statuses*; of nothing it is `none`."""
    return max(statuses, key=_ORDER.index, default="none")


def sign(ear: Ear, key: EcKey) -> str:
    """Return *ear* as a JWT signed with a P-256 key.

    Raises:
        ValueError: it would live longer than `MAX_LIFE`.

    """
    if not 0 < ear.exp - ear.iat <= MAX_LIFE:
        raise ValueError("an attestation result lives at most fifteen minutes")
    message = _encode64(_HEADER) + b"." + _encode64(_encoder.encode(ear))
    return (message + b"." + _encode64(key.sign_raw(message))).decode("ascii")


def verify(token: str, public: EcPublic, now: float) -> Ear:
    """Check a result.

    Raises:
        UntrustedDataError: `ear-form`, `ear-signature`, `ear-expired`.

    """
    parts = token.encode("utf-8", "replace").split(b".") if len(token) <= LIMIT else []
    if len(parts) != 3 or _decode64(parts[0]) != _HEADER:  # noqa: PLR2004 - header, claims, signature
        raise UntrustedDataError("not an attestation result of ours", check="ear-form")
    signature = _decode64(parts[2])
    if len(signature) != _SIGNATURE_BYTES or not public.verify_raw(signature, parts[0] + b"." + parts[1]):
        raise UntrustedDataError("the attestation result is not signed by this fleet", check="ear-signature")
    try:
        ear = _decoder.decode(_decode64(parts[1]))
    except MALFORMED as error:
        raise UntrustedDataError(f"the attestation result is not well-formed: {error}", check="ear-form") from error
    if not 0 < ear.exp - ear.iat <= MAX_LIFE or not ear.iat <= now < ear.exp:
        raise UntrustedDataError("the attestation result has expired", check="ear-expired", hint="attest again")
    return ear


def confirmation(certificate_digest: bytes) -> Confirmation:
    """Return the `cnf` of a certificate, from the SHA-256 of its DER."""
    return Confirmation(_encode64(certificate_digest).decode("ascii"))


def nonce_claim(nonce: bytes) -> str:
    """Return a nonce as the claim has it."""
    return _encode64(nonce).decode("ascii")


def claims(ear: Ear) -> dict[str, Any]:
    """Return the claims as plain data, for an API or a page."""
    shown: dict[str, Any] = msgspec.json.decode(_encoder.encode(ear))
    return shown


def _encode64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decode64(text: bytes) -> bytes:
    """Read base64url in its one spelling."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise UntrustedDataError("not base64url", check="ear-form") from error
    if _encode64(data) != text:
        raise UntrustedDataError("base64url in a second spelling", check="ear-form")
    return data
