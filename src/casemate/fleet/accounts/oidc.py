"""What a sign-in provider's word is worth here (OpenID Connect Core 1.0, code flow). Decisions only, no I/O.

A token is believed when the provider's own key signed it, for us, in answer to what we asked, now. Then it says who
somebody is; what they may do is said by our records, or by a mapping that an owner wrote down. Nobody comes in because
a provider knows them.
"""

from __future__ import annotations

import dataclasses
import hmac
import math
from typing import Any, Final

from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidClaimError, JoseError, MissingClaimError
from joserfc.jwk import KeySet

from casemate.errors import NotAuthorisedError, UntrustedDataError
from casemate.fleet.shared_settings import OidcSettings

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
"""Signatures by a key that only the provider has; a shared secret, or nothing at all, signs no token here."""
KEY_TYPES: Final = ("RSA", "EC", "OKP")
TOKEN_LIMIT: Final = 16 * 1024
SKEW: Final = 60
"""Seconds the provider's clock may be off."""
_LONGEST: Final = 255
_VALUES: Final = 256
_CHECKS: Final = {"iss": "oidc-issuer", "aud": "oidc-audience", "azp": "oidc-audience", "nonce": "oidc-nonce"}
_TIMES: Final = frozenset({"exp", "iat", "nbf"})


@dataclasses.dataclass(frozen=True)
class VerifiedLogin:
    """Who a provider says somebody is. *email* only when the provider verified it, lower case; else ""."""

    issuer: str
    subject: str
    email: str
    values: tuple[str, ...]
    """Of the claim that the mapping of roles looks at."""
    authenticated: float | None
    """When they proved themselves to the provider, if it says so."""


@dataclasses.dataclass(frozen=True)
class Account:
    """Somebody we know. *mapped*: the mapping made them, and decides their role."""

    id: str
    name: str
    is_active: bool
    mapped: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """What happens to a login: who enters, with which role (None: their own), and what must be written first."""

    account: Account | None
    role: str | None = None
    link: bool = False

    @property
    def makes(self) -> bool:
        """Whether a new account is made."""
        return self.account is None


def verify_id_token(text: str, keys: KeySet, settings: OidcSettings, *, nonce: str, now: float) -> VerifiedLogin:
    """Check an ID token (section 3.1.3.7).

    Raises:
        UntrustedDataError: `oidc-signature`, `oidc-issuer`, `oidc-audience`, `oidc-nonce`, `oidc-time`, `oidc-claims`.

    """
    if len(text) > TOKEN_LIMIT:
        raise UntrustedDataError("the provider's token is too long", check="oidc-claims")
    try:
        token = jwt.decode(text, keys, algorithms=list(ALGORITHMS))
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise UntrustedDataError("the provider's key did not sign this token", check="oidc-signature") from error
    _require_claims(token, settings, nonce, now)
    claims = token.claims
    authenticated = claims.get("auth_time")
    if authenticated is not None and authenticated > now + SKEW:
        raise UntrustedDataError("the provider's token is from the future", check="oidc-time")
    return VerifiedLogin(
        issuer=settings.issuer,
        subject=claims["sub"],
        email=_email(claims),
        values=_values(claims.get(settings.role_claim)) if settings.role_claim else (),
        authenticated=None if authenticated is None else min(float(authenticated), now),
    )


def _require_claims(token: jwt.Token, settings: OidcSettings, nonce: str, now: float) -> None:
    claims = token.claims
    for name in ("sub", "nonce", "iss"):
        if not isinstance(claims.get(name), str) or not 0 < len(claims[name]) <= _LONGEST:
            raise UntrustedDataError(f"the provider's token has no {name}", check=_CHECKS.get(name, "oidc-claims"))
    for name in ("exp", "iat", "nbf", "auth_time"):
        if name in claims and not _is_moment(claims[name]):
            raise UntrustedDataError(f"the provider's token has a wrong {name}", check="oidc-time")
    options = {
        "iss": {"essential": True, "value": settings.issuer},
        "aud": {"essential": True, "value": settings.client_id},
    }
    checked = CodeIDToken(claims, token.header, options, {"nonce": nonce, "client_id": settings.client_id})
    try:
        checked.validate(int(now), SKEW)
    except (InvalidClaimError, MissingClaimError) as error:
        name = str(getattr(error, "claim", ""))
        check = "oidc-time" if name in _TIMES else _CHECKS.get(name, "oidc-claims")
        raise UntrustedDataError(f"the provider's token is not for us: {name[:32] or 'claims'}", check=check) from error
    except JoseError as error:  # an expired token is an error of its own
        raise UntrustedDataError("the provider's token is over", check="oidc-time") from error
    if not hmac.compare_digest(claims["nonce"].encode(), nonce.encode()):
        raise UntrustedDataError("the provider's token answers another question", check="oidc-nonce")


def decide(settings: OidcSettings, login: VerifiedLogin, linked: Account | None, same_email: Account | None) -> Entry:
    """Decide what *login* is: *linked* is whom we know by issuer and subject, *same_email* who has that address here.

    Raises:
        NotAuthorisedError: nobody of ours.

    """
    role = role_of(settings, login.values)
    if linked is not None:
        _require_active(linked)
        if not linked.mapped:
            return Entry(linked)
        if role is None:
            raise NotAuthorisedError("your provider gives you no role here any more", hint="ask who runs the provider")
        return Entry(linked, role)
    if not login.email:
        raise NotAuthorisedError(
            "your provider does not say that your e-mail address is verified", hint="verify it there, then try again"
        )
    if same_email is not None:
        _require_active(same_email)
        return Entry(same_email, link=True)
    if role is None:
        raise NotAuthorisedError("nobody here has your e-mail address", hint="ask an owner to invite you")
    return Entry(None, role, link=True)


def role_of(settings: OidcSettings, values: tuple[str, ...]) -> str | None:
    """Return the role that the mapping gives to somebody with *values*; the first row that fits counts."""
    return next((role for value, role in settings.roles if value in values), None)


def proves_again(login: VerifiedLogin, begun: float) -> bool:
    """Say whether somebody proved themselves to the provider after they were asked to, at *begun*."""
    return login.authenticated is not None and login.authenticated >= begun - SKEW


def _require_active(account: Account) -> None:
    if not account.is_active:
        raise NotAuthorisedError("your account was disabled", hint="ask an owner")


def _is_moment(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value < 2**53
    )


def _email(claims: dict[str, Any]) -> str:
    """Return the address, if the provider says that it verified it: true, and not a string that says so."""
    address = claims.get("email")
    if claims.get("email_verified") is not True or not isinstance(address, str):
        return ""
    return address.strip().lower() if 3 <= len(address) <= 254 and address.isprintable() and "@" in address else ""  # noqa: PLR2004 - RFC 5321


def _values(claim: Any) -> tuple[str, ...]:
    """Return a claim's values: a string is one, a list of strings many, anything else none."""
    found = [claim] if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return tuple(each for each in found[:_VALUES] if isinstance(each, str))
