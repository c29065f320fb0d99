"""Speaking to the sign-in provider: what it says about itself, its keys, and the code that becomes a token.

Its answers are bounded in size and time and no redirect is followed. Keys are fetched again when they are older than
`KEYS_KNOWN`, and once when a token is signed by none of them: a provider may rotate them at any moment.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import urllib3
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from casemate.clock import Clock
from casemate.errors import NotAuthorisedError, OperationError, UntrustedDataError, UsageError
from casemate.fleet.accounts import oidc
from casemate.fleet.accounts.oidc import VerifiedLogin
from casemate.fleet.shared_settings import OidcSettings
from casemate.formats.decoding import MALFORMED

KNOWN: Final = 3600.0
"""Seconds that what a provider says about itself is believed."""
FAILED: Final = 5.0
"""Seconds in which a provider that did not answer is not asked again: whoever waits for it holds a thread."""
KEYS_KNOWN: Final = 300.0
"""The same for its keys: a key that was taken away because somebody stole it counts no longer than this."""
_SECONDS: Final = 5.0
_LIMIT: Final = 256 * 1024
_MOST_KEYS: Final = 32
_SCOPES: Final = "openid email profile"
_LOCAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_FIX: Final = "`casemate fleet oidc show` says which; is it up, and its address right?"


class Discovered(msgspec.Struct, frozen=True):
    """What we use of a provider's description (OpenID Connect Discovery 1.0, section 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


@dataclasses.dataclass(frozen=True)
class Question:
    """What a browser is sent to the provider with; kept here until it comes back."""

    state: str
    nonce: str
    verifier: str
    redirect: str
    again: bool = False
    """Have the provider ask for their proof once more, however recent the last one."""


@dataclasses.dataclass(slots=True)
class _Held:
    issuer: str
    until: float
    described: Discovered
    keys: KeySet | None = None
    fetched: float = 0.0


class Provider:
    """One provider, and what it said lately."""

    def __init__(self, clock: Clock) -> None:
        """Know nothing yet."""
        self._clock = clock
        self._held: _Held | None = None
        self._asking = asyncio.Lock()
        self._failed: tuple[str, float] = ("", 0.0)

    async def described(self, settings: OidcSettings) -> Discovered:
        """Return what the provider says about itself.

        Raises:
            OperationError: it does not answer.
            UntrustedDataError: `oidc-issuer` or `oidc-description`: it is another one, or sends people elsewhere.

        """
        return (await self._known(settings)).described

    async def address(self, settings: OidcSettings, question: Question) -> str:
        """Return where to send a browser with *question*."""
        described = await self.described(settings)
        again = {"max_age": "0", "prompt": "login"} if question.again else {}
        found: str = prepare_grant_uri(
            described.authorization_endpoint,
            client_id=settings.client_id,
            response_type="code",
            redirect_uri=question.redirect,
            scope=_SCOPES,
            state=question.state,
            nonce=question.nonce,
            code_challenge=create_s256_code_challenge(question.verifier),
            code_challenge_method="S256",
            **again,
        )
        return found

    async def login(self, settings: OidcSettings, secret: str, code: str, question: Question) -> VerifiedLogin:
        """Turn *code* into who it is.

        Raises:
            NotAuthorisedError: the provider does not take the code.
            UntrustedDataError: its token is not good: see `oidc.verify_id_token`.

        """
        held = await self._known(settings)
        text = await asyncio.to_thread(_exchange, held.described, settings, secret, code, question)
        now, fresh = self._clock.wall(), False
        keys = held.keys
        if keys is None or self._clock.monotonic() - held.fetched >= KEYS_KNOWN:
            keys, fresh = await self._keys(held), True
        try:
            return oidc.verify_id_token(text, keys, settings, nonce=question.nonce, now=now)
        except UntrustedDataError as error:
            if error.check != "oidc-signature" or fresh:
                raise
        return oidc.verify_id_token(text, await self._keys(held), settings, nonce=question.nonce, now=now)

    async def _known(self, settings: OidcSettings) -> _Held:
        async with self._asking:  # anybody may begin to sign in: the provider is asked by one at a time
            held = self._held
            if held and held.issuer == settings.issuer and self._clock.monotonic() < held.until:
                return held
            issuer, until = self._failed
            if issuer == settings.issuer and self._clock.monotonic() < until:
                raise OperationError("the sign-in provider did not answer", hint=_FIX)
            try:
                return await self._discover(settings)
            except OperationError:
                self._failed = (settings.issuer, self._clock.monotonic() + FAILED)
                raise

    async def _discover(self, settings: OidcSettings) -> _Held:
        address = settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
        body = await asyncio.to_thread(_fetch, "GET", address)
        described = parse_description(body, settings.issuer)
        self._held = _Held(settings.issuer, self._clock.monotonic() + KNOWN, described)
        return self._held

    async def _keys(self, held: _Held) -> KeySet:
        held.keys = parse_keys(await asyncio.to_thread(_fetch, "GET", held.described.jwks_uri))
        held.fetched = self._clock.monotonic()
        return held.keys


def check_issuer(text: str) -> str:
    """Return *text* when it can be an issuer.

    Raises:
        UsageError: not https, and not http on this machine.

    """
    place = urlsplit(text)
    if place.query or place.fragment or place.username or not _is_address(text):
        raise UsageError("an issuer is an https address", hint="https://HOST[/PATH], exactly as the provider writes it")
    return text


def parse_description(body: bytes, issuer: str) -> Discovered:
    """Return a provider's description of itself.

    Raises:
        UntrustedDataError: `oidc-description`: not one; `oidc-issuer`: of somebody else.

    """
    try:
        found = msgspec.json.decode(body, type=Discovered)
    except MALFORMED as error:
        raise UntrustedDataError("this is no provider's description of itself", check="oidc-description") from error
    if found.issuer != issuer:
        raise UntrustedDataError(
            "the provider calls itself something else", check="oidc-issuer", hint=found.issuer[:200]
        )
    for address in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri):
        if not _is_address(address) or (urlsplit(address).scheme == "http" and urlsplit(issuer).scheme != "http"):
            raise UntrustedDataError("the provider names an address without TLS", check="oidc-description")
    return found


def parse_keys(body: bytes) -> KeySet:
    """Return the public keys of a provider; symmetric ones, and ones for encryption, are not looked at.

    Raises:
        UntrustedDataError: `oidc-keys`.

    """
    refusal = UntrustedDataError("the provider has no keys that we can use", check="oidc-keys")
    try:
        rows = msgspec.json.decode(body, type=dict[str, Any])["keys"]
        usable = [
            row for row in rows[:_MOST_KEYS] if row.get("kty") in oidc.KEY_TYPES and row.get("use", "sig") == "sig"
        ]
        return KeySet.import_key_set({"keys": usable})
    except (*MALFORMED, JoseError) as error:
        raise refusal from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise refusal from error


def _exchange(described: Discovered, settings: OidcSettings, secret: str, code: str, question: Question) -> str:
    body = prepare_token_request(
        "authorization_code", redirect_uri=question.redirect, code=code, code_verifier=question.verifier
    )
    methods = described.token_endpoint_auth_methods_supported
    method = (
        "none" if not secret else "client_secret_basic" if "client_secret_basic" in methods else "client_secret_post"
    )
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    auth = ClientAuth(settings.client_id, secret or None, method)
    address, headers, body = auth.prepare("POST", described.token_endpoint, headers, body)
    answer = _fetch("POST", address, body.encode(), headers, refused=(400, 401, 403))
    try:
        token = msgspec.json.decode(answer, type=dict[str, Any])["id_token"]
    except (*MALFORMED, KeyError) as error:
        raise UntrustedDataError("the provider gave no token", check="oidc-claims") from error
    if not isinstance(token, str):
        raise UntrustedDataError("the provider gave no token", check="oidc-claims")
    return token


def _fetch(
    method: str,
    address: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    refused: tuple[int, ...] = (),
) -> bytes:
    failure = OperationError("the sign-in provider did not answer", hint=_FIX)
    timeout = urllib3.Timeout(total=_SECONDS)
    with urllib3.PoolManager(timeout=timeout, retries=False) as pool:
        try:
            answer = pool.request(
                method, address, body=body, headers={"User-Agent": "casemate", **(headers or {})},
                redirect=False, preload_content=False,
            )  # fmt: skip
            data = answer.read(_LIMIT + 1, decode_content=True)
            answer.drain_conn() if len(data) <= _LIMIT else answer.close()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise failure from error
    if answer.status in refused:
        raise NotAuthorisedError("the provider does not stand by this sign-in", hint="start again")
    if answer.status != 200 or len(data) > _LIMIT:  # noqa: PLR2004 - OK
        raise failure
    return bytes(data)


def _is_address(text: str) -> bool:
    try:
        place = urlsplit(text)
        local = place.scheme == "http" and place.hostname in _LOCAL
    except ValueError:
        return False
    return bool(place.hostname) and text.isprintable() and (place.scheme == "https" or local)
