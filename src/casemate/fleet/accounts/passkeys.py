"""Passkeys: what the browser is asked for and what its answer must hold (WebAuthn Level 2).

The person must be verified by the authenticator (PIN, finger), so a passkey alone is two factors. Attestation is not
asked for: who made the authenticator decides nothing here.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

import msgspec
import webauthn
from webauthn.helpers import bytes_to_base64url
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from casemate.errors import NotAuthorisedError
from casemate.formats.decoding import MALFORMED

_ANSWER_LIMIT: Final = 32 * 1024
_REFUSED: Final = "the passkey was not accepted"


@dataclasses.dataclass(frozen=True)
class RelyingParty:
    """Who a passkey is for. *id*: the host name. *origin*: scheme, host and port as a browser says them."""

    id: str
    origin: str
    name: str = "Casemate fleet"


@dataclasses.dataclass(frozen=True)
class Passkey:
    """A passkey that was accepted."""

    credential_id: str
    public_key: bytes
    sign_count: int


def registration_options(
    party: RelyingParty, challenge: bytes, user_id: str, user_name: str, known: list[str]
) -> dict[str, Any]:
    """Return what `navigator.credentials.create` takes; *known* are passkeys the person has already."""
    options = webauthn.generate_registration_options(
        rp_id=party.id,
        rp_name=party.name,
        user_name=user_name,
        user_id=user_id.encode(),
        challenge=challenge,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED, user_verification=UserVerificationRequirement.REQUIRED
        ),
        exclude_credentials=[
            PublicKeyCredentialDescriptor(id=webauthn.base64url_to_bytes(credential)) for credential in known
        ],
    )
    parsed: dict[str, Any] = json.loads(webauthn.options_to_json(options))
    return parsed


def login_options(party: RelyingParty, challenge: bytes, known: list[str] | None = None) -> dict[str, Any]:
    """Return what `navigator.credentials.get` takes; without *known* the browser offers what it has for us."""
    options = webauthn.generate_authentication_options(
        rp_id=party.id,
        challenge=challenge,
        user_verification=UserVerificationRequirement.REQUIRED,
        allow_credentials=[
            PublicKeyCredentialDescriptor(id=webauthn.base64url_to_bytes(credential)) for credential in known or []
        ],
    )
    parsed: dict[str, Any] = json.loads(webauthn.options_to_json(options))
    return parsed


def verify_registration(party: RelyingParty, challenge: bytes, answer: bytes) -> Passkey:
    """Check what `navigator.credentials.create` gave.

    Raises:
        NotAuthorisedError: it is not for us, not for this challenge, or the person was not verified.

    """
    credential = _parsed(answer)
    try:
        made = webauthn.verify_registration_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            require_user_verification=True,
        )
    except (WebAuthnException, ValueError, KeyError, TypeError) as error:
        raise NotAuthorisedError(_REFUSED, hint="try again, with a PIN or a finger on the passkey") from error
    return Passkey(bytes_to_base64url(made.credential_id), made.credential_public_key, made.sign_count)


def verify_login(party: RelyingParty, challenge: bytes, answer: bytes, passkey: Passkey) -> int:
    """Check what `navigator.credentials.get` gave, by *passkey*; returns its new counter.

    Raises:
        NotAuthorisedError: as `verify_registration`, or its counter went back: somebody has a copy.

    """
    credential = _parsed(answer)
    try:
        shown = webauthn.verify_authentication_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            credential_public_key=passkey.public_key,
            credential_current_sign_count=passkey.sign_count,
            require_user_verification=True,
        )
    except (WebAuthnException, ValueError, KeyError, TypeError) as error:
        raise NotAuthorisedError(_REFUSED, hint="try again, or use another passkey") from error
    return shown.new_sign_count


def credential_of(answer: bytes) -> str:
    """Return which passkey an answer claims to be by, base64url.

    Raises:
        NotAuthorisedError: it is not an answer.

    """
    claimed = _parsed(answer).get("id")
    if not isinstance(claimed, str) or not 1 <= len(claimed) <= 1400:  # noqa: PLR2004 - the column's width
        raise NotAuthorisedError(_REFUSED)
    return claimed


def _parsed(answer: bytes) -> dict[str, Any]:
    if len(answer) > _ANSWER_LIMIT:
        raise NotAuthorisedError(_REFUSED)
    try:
        value = msgspec.json.decode(answer)
    except MALFORMED as error:
        raise NotAuthorisedError(_REFUSED) from error
    if not isinstance(value, dict):
        raise NotAuthorisedError(_REFUSED)
    return value
