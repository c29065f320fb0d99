"""What a sign-in provider's token must be, and who comes in by one; every lie alone, and tokens of random claims."""

from __future__ import annotations

import asyncio
import http.server
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from casemate.clock import SystemClock
from casemate.errors import CasemateError, NotAuthorisedError, OperationError, UntrustedDataError, UsageError
from casemate.fleet import signon
from casemate.fleet.accounts import oidc, people, provider
from casemate.fleet.accounts.oidc import Account, VerifiedLogin
from casemate.fleet.shared_settings import OidcSettings

NOW = 1_800_000_000
KEY = RSAKey.generate_key(2048, {"kid": "one"})
KEYS = KeySet([KEY])
ROLES = (("admins", "owner"), ("it", "operator"))
SETTINGS = OidcSettings("https://id.example", "casemate", role_claim="groups", roles=ROLES)
HONEST = {
    "iss": "https://id.example",
    "sub": "subject",
    "aud": "casemate",
    "nonce": "n" * 32,
    "iat": NOW,
    "exp": NOW + 300,
    "email": "Ada@Example.org",
    "email_verified": True,
}


def verify(claims, key=KEY, alg="RS256", keys=KEYS):
    text = jwt.encode({"alg": alg, "kid": "one"}, claims, key)
    return oidc.verify_id_token(text, keys, SETTINGS, nonce="n" * 32, now=float(NOW))


def test_an_honest_token_says_who_it_is():
    login = verify({**HONEST, "groups": ["it", 7, "cooks"], "auth_time": NOW - 100})
    assert login == VerifiedLogin("https://id.example", "subject", "ada@example.org", ("it", "cooks"), NOW - 100.0)


LIES = {
    "another-audience": ({"aud": "other"}, "oidc-audience"),
    "audiences-without-us": ({"aud": ["other", "third"]}, "oidc-audience"),
    "audiences-and-another-party": ({"aud": ["casemate", "other"], "azp": "other"}, "oidc-audience"),
    "audiences-and-nobody-named": ({"aud": ["casemate", "other"]}, "oidc-audience"),
    "no-audience": ({"aud": None}, "oidc-audience"),
    "another-issuer": ({"iss": "https://id.example.evil"}, "oidc-issuer"),
    "issuer-with-a-slash": ({"iss": "https://id.example/"}, "oidc-issuer"),
    "no-issuer": ({"iss": None}, "oidc-issuer"),
    "another-nonce": ({"nonce": "x" * 32}, "oidc-nonce"),
    "no-nonce": ({"nonce": None}, "oidc-nonce"),
    "nonce-is-a-list": ({"nonce": ["n" * 32]}, "oidc-nonce"),
    "expired": ({"exp": NOW - 3600}, "oidc-time"),
    "no-end": ({"exp": None}, "oidc-time"),
    "end-is-text": ({"exp": "9999999999"}, "oidc-time"),
    "end-is-true": ({"exp": True}, "oidc-time"),
    "issued-tomorrow": ({"iat": NOW + 86400, "exp": NOW + 90000}, "oidc-time"),
    "not-yet-good": ({"nbf": NOW + 86400}, "oidc-time"),
    "never-issued": ({"iat": None}, "oidc-time"),
    "proved-tomorrow": ({"auth_time": NOW + 86400}, "oidc-time"),
    "proved-in-words": ({"auth_time": "now"}, "oidc-time"),
    "no-subject": ({"sub": None}, "oidc-claims"),
    "empty-subject": ({"sub": ""}, "oidc-claims"),
    "subject-is-a-number": ({"sub": 7}, "oidc-claims"),
    "subject-without-end": ({"sub": "s" * 256}, "oidc-claims"),
}


@pytest.mark.parametrize("lie", LIES)
def test_one_lie_is_enough(lie):
    changed, check = LIES[lie]
    claims = {name: value for name, value in {**HONEST, **changed}.items() if value is not None}
    with pytest.raises(UntrustedDataError) as refused:
        verify(claims)
    assert refused.value.check == check


def test_a_key_that_is_not_the_providers_signs_nothing():
    with pytest.raises(UntrustedDataError) as refused:
        verify(HONEST, RSAKey.generate_key(2048, {"kid": "one"}))
    assert refused.value.check == "oidc-signature"


@pytest.mark.parametrize("text", ["", "a.b.c", "....", "e30.e30.", "é", "a" * 20_000])
def test_what_is_no_token_is_refused(text):
    with pytest.raises(UntrustedDataError):
        oidc.verify_id_token(text, KEYS, SETTINGS, nonce="n" * 32, now=float(NOW))


@pytest.mark.parametrize(
    ("claims", "email"),
    [
        ({"email_verified": "true"}, ""),
        ({"email_verified": 1}, ""),
        ({"email": None}, ""),
        ({"email": ["ada@example.org"]}, ""),
        ({"email": "ada"}, ""),
        ({"email": "a\nb@example.org"}, ""),
        ({}, "ada@example.org"),
    ],
)
def test_an_address_counts_only_when_the_provider_verified_it(claims, email):
    assert verify({**HONEST, **claims}).email == email


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from([*HONEST, "azp", "nbf", "auth_time", "groups", "amr"]), JSON, max_size=4))
def test_whatever_claims_say_the_answer_is_a_login_for_us_or_a_refusal(changed):
    try:
        login = verify({**HONEST, **changed})
    except UntrustedDataError:
        return
    assert login.issuer == SETTINGS.issuer
    assert changed.get("nonce", "n" * 32) == "n" * 32
    assert isinstance(login.subject, str)
    assert login.subject
    assert login.authenticated is None or login.authenticated <= NOW


# --- who comes in -----------------------------------------------------------------------------------------------------

ADA = Account("ada", "Ada", is_active=True)
GONE = Account("gone", "Gone", is_active=False)
MADE = Account("made", "made@example.org", is_active=True, mapped=True)


def login(email="ada@example.org", values=()):
    return VerifiedLogin("https://id.example", "subject", email, values, None)


@pytest.mark.parametrize(
    ("said", "linked", "same_email", "outcome"),
    [
        (login(), ADA, None, (ADA, None, False)),
        (login(""), ADA, None, (ADA, None, False)),
        (login(values=("admins",)), ADA, None, (ADA, None, False)),
        (login(), GONE, None, "disabled"),
        (login(), None, ADA, (ADA, None, True)),
        (login(values=("admins",)), None, ADA, (ADA, None, True)),
        (login(values=("admins",)), None, GONE, "disabled"),
        (login(), None, None, "nobody here"),
        (login("", ("admins",)), None, None, "verified"),
        (login(values=("cooks",)), None, None, "nobody here"),
        (login(values=("it", "admins")), None, None, (None, "owner", True)),
        (login(values=("it",)), MADE, None, (MADE, "operator", False)),
        (login(), MADE, None, "no role"),
        (login(values=("it",)), GONE, ADA, "disabled"),
    ],
)
def test_who_enters_is_a_table(said, linked, same_email, outcome):
    if isinstance(outcome, str):
        with pytest.raises(NotAuthorisedError, match=outcome):
            oidc.decide(SETTINGS, said, linked, same_email)
        return
    entry = oidc.decide(SETTINGS, said, linked, same_email)
    assert (entry.account, entry.role, entry.link) == outcome


def test_proof_again_means_after_it_was_asked_for():
    at = VerifiedLogin("i", "s", "", (), float(NOW))
    assert oidc.proves_again(at, NOW - 5.0)
    assert not oidc.proves_again(at, NOW + 600.0)
    assert not oidc.proves_again(login(), 0.0)


# --- what a provider says about itself, and what a person says about it -----------------------------------------------

DESCRIPTION = (
    '{"issuer":"https://id.example","authorization_endpoint":"https://id.example/a",'
    '"token_endpoint":"https://id.example/t","jwks_uri":"https://id.example/k"}'
)


def test_a_description_is_of_the_issuer_and_names_addresses_with_tls():
    assert provider.parse_description(DESCRIPTION.encode(), "https://id.example").token_endpoint.endswith("/t")
    for bad, check in (
        (DESCRIPTION.replace("https://id.example/t", "http://id.example/t"), "oidc-description"),
        (DESCRIPTION.replace("https://id.example/t", "http://127.0.0.1/t"), "oidc-description"),
        (DESCRIPTION.replace("https://id.example/k", "file:///etc/passwd"), "oidc-description"),
        (DESCRIPTION.replace('"https://id.example"', '"https://other.example"'), "oidc-issuer"),
        ("[" * 100_000, "oidc-description"),
        ("{}", "oidc-description"),
    ):
        with pytest.raises(UntrustedDataError) as refused:
            provider.parse_description(bad.encode(), "https://id.example")
        assert refused.value.check == check


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"keys":[]}',
        b'{"keys":7}',
        b'{"keys":[7]}',
        b'{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}',
        b'{"keys":[{"kty":"RSA","use":"enc","n":"AQAB","e":"AQAB"}]}',
        b'{"keys":[{"kty":"RSA","n":7,"e":{}}]}',
        b'{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}',
    ],
)
def test_a_set_without_a_public_key_for_signatures_is_refused(body):
    with pytest.raises(UntrustedDataError) as refused:
        provider.parse_keys(body)
    assert refused.value.check == "oidc-keys"


@pytest.mark.parametrize(
    "issuer", ["http://id.example", "https://", "id.example", "https://a@b.example", "https://b.example/?x", "\n", ""]
)
def test_an_issuer_is_an_https_address(issuer):
    with pytest.raises(UsageError):
        provider.check_issuer(issuer)


@pytest.mark.parametrize("rows", [("x",), ("=owner",), ("x=king",)])
def test_a_mapping_names_roles_of_ours(rows):
    with pytest.raises(UsageError):
        signon.parse_roles(rows)
    assert signon.parse_roles(("cn=it,dc=x=operator",)) == (("cn=it,dc=x", "operator"),)


@given(st.text(max_size=40))
def test_no_text_becomes_an_address_with_a_second_line(text):
    try:
        address = people.parse_email(text + "@example.org")
    except CasemateError:
        return
    assert address.isascii()
    assert not set(address) & set('\r\n ,;<>"()')


def test_a_provider_that_is_down_is_asked_once_however_many_try_to_sign_in():
    """Anybody can begin to sign in, and each who waits for the provider holds one of the server's threads."""
    asked = []

    class Down(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(500)

        def log_message(self, *_):
            pass

    async def work(issuer):
        known = provider.Provider(SystemClock())
        settings_ = OidcSettings(issuer, "casemate")
        found = await asyncio.gather(*(known.described(settings_) for _ in range(30)), return_exceptions=True)
        assert {type(each) for each in found} == {OperationError}

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Down) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asyncio.run(work(f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()
    assert asked == ["/.well-known/openid-configuration"]
