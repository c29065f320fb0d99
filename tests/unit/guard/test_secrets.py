"""Every kind of token in the table is found as itself; what surroundings give away is judged by the value too."""

from __future__ import annotations

import random
import re
from re import _parser as parser

import pytest

from casemate.guard.entities import providers, randomness, tokens
from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.verdict import Action, Channel, GuardPolicy

NAMES = Placeholders(bytes(32))
POLICY = GuardPolicy(output_entities={"*": Action.REDACT})
ASCII = [chr(code) for code in range(33, 127)]


def redact(text):
    return redact_text(text, POLICY, Channel.OUTPUT, NAMES)


def found(text):
    return {text[s.start : s.end]: s.type for s in redact(text).spans}


def sample(pattern, chance):
    """Return a random text that *pattern* matches: walks the parsed pattern."""
    return "".join(_walk(parser.parse(pattern), chance))


def _walk(parsed, chance):
    for operation, argument in parsed:
        name = str(operation)
        if name == "LITERAL":
            yield chr(argument)
        elif name == "IN":
            yield chance.choice([c for c in ASCII if _is_in(argument, c)])
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = argument
            for _ in range(chance.randint(least, min(most, least + 12))):
                yield from _walk(inner, chance)
        elif name == "SUBPATTERN":
            yield from _walk(argument[-1], chance)
        elif name == "BRANCH":
            yield from _walk(chance.choice(argument[1]), chance)


def _is_in(items, character):
    for operation, argument in items:
        name = str(operation)
        if name == "LITERAL" and character == chr(argument):
            return True
        if name == "RANGE" and argument[0] <= ord(character) <= argument[1]:
            return True
        if name == "CATEGORY" and re.fullmatch(
            {"CATEGORY_WORD": r"\w", "CATEGORY_DIGIT": r"\d"}[str(argument)], character
        ):
            return True
    return False


def test_there_are_kinds_enough():
    kinds = {token.kind for token in tokens.TOKENS} | {provider.kind for provider in providers.PROVIDERS}
    assert len(kinds) >= 150


@pytest.mark.parametrize("token", tokens.TOKENS, ids=lambda token: f"{token.kind}-{token.start[:12]}")
def test_a_token_of_every_kind_is_covered(token):
    chance = random.Random(token.kind)
    missed = []
    for _ in range(10):
        value = chance.choice(token.start.split("|")) + sample(token.rest, chance)
        spans = redact(f"use {value} now").spans
        covered = {at for span in spans for at in range(span.start, span.end)} & set(range(4, 4 + len(value)))
        if len(covered) < 0.95 * len(value):
            missed.append((value, spans))
    assert len(missed) <= 1, missed  # chance makes a word or a placeholder now and then


@pytest.mark.parametrize("provider", providers.PROVIDERS, ids=lambda provider: provider.kind)
def test_an_issuers_plain_secret_is_known_beside_its_name(provider):
    name = provider.names.split()[0]
    chance = random.Random(provider.kind)
    missed = []
    for _ in range(10):
        value = sample(provider.value, chance).strip('"')
        kinds = [f"secret:{kind}" for pattern, kind in providers.BY_NAME[name] if pattern.fullmatch(value)]
        spans = redact(f'{name}_api_key = "{value}"').spans
        if not spans or spans[0].type not in (*kinds, "secret:password", "secret:llm-api-key"):
            missed.append((value, spans))
    assert len(missed) <= 1, missed


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ("DB_PASSWORD='A2YhGumfJhq8lX'", "A2YhGumfJhq8lX", "password"),
        ("password is ZbasNUfsOrzK4 please", "ZbasNUfsOrzK4", "password"),
        ('{"password": "correct horse, battery"}', "correct horse, battery", "password"),
        ("mot de passe : Soleil#44", "Soleil#44", "password"),
        ("mysql -u root -p'ZlwdLV*u+3' shop", "ZlwdLV*u+3", "password"),
        ("Server=db;User Id=sa;Password=hX7!kq2;Encrypt=yes", "hX7!kq2", "password"),
        ("<password>lamp-river38</password>", "lamp-river38", "password"),
        ("curl -u bob:s3cr3tpw https://x", "s3cr3tpw", "curl-auth-user"),
        ("machine h login u password hX7kq2zz", "hX7kq2zz", "netrc-password"),
        ("Authorization: Basic dXNlcjcyOm1iZ3REWHZCa1o3djNf", "dXNlcjcyOm1iZ3REWHZCa1o3djNf", "basic-auth"),
        ("https://bot:g8!RuAeCw@git.example/r.git", "g8!RuAeCw", "url-credentials"),
        ("token for okapi is 7vrd5u62qh0li988wcs6", "7vrd5u62qh0li988wcs6", "generic-api-key"),
        ("the api key 4627u96o6w3i2lpgz9ty37lo is old", "4627u96o6w3i2lpgz9ty37lo", "generic-api-key"),
        ('client.auth("l9mfb7yck22x2ttpqi5301gs")', "l9mfb7yck22x2ttpqi5301gs", "generic-api-key"),
        ("OTP 665036 is valid for", "665036", "pin"),
        ("your verification code is 655801", "655801", "pin"),
        (
            "recovery key: nvvjhggd-ljgukjjj-lbherttn-hudkcrdh-grrdifnv-frrkbcdf-cdiinfkd-vtvengbc",
            "nvvjhggd-ljgukjjj-lbherttn-hudkcrdh-grrdifnv-frrkbcdf-cdiinfkd-vtvengbc",
            "luks-recovery",
        ),
        (
            "my wallet seed phrase: air afford actor alpha abandon again ahead address agree advice alter ability",
            "air afford actor alpha abandon again ahead address agree advice alter ability",
            "bip39",
        ),
        (
            "seed:\n1. air 2. afford 3. actor 4. alpha 5. again 6. acid 7. able 8. act 9. age 10. aim 11. ask 12. art",
            "air 2. afford 3. actor 4. alpha 5. again 6. acid 7. able 8. act 9. age 10. aim 11. ask 12. art",
            "bip39",
        ),
        (
            "5HueCGU8rMjxEXxiPuD5BDku4MkFqeZyd4dZ1jvhTVqvbTLvyTJ",
            "5HueCGU8rMjxEXxiPuD5BDku4MkFqeZyd4dZ1jvhTVqvbTLvyTJ",
            "bitcoin-private-key",
        ),
    ],
)
def test_what_the_surroundings_give_away(text, value, kind):
    assert found(text) == {value: f"secret:{kind}"}


@pytest.mark.parametrize(
    "text",
    [
        "password: <your-password-here>",
        "password = os.environ['DB_PASSWORD']",
        'api_key = os.environ["API_KEY"]',
        "token: ${GITHUB_TOKEN}",
        'client_secret: "REPLACE_ME"',
        '"password": "", "name": "x", "token": " , "',
        "note: key: 0123456789abcdef",
        "The password must contain a digit",
        "Authorization: Bearer <token>",
        "Basic usage: casemate up",
        "public key: 8f2a9c3d4e5b6a7f8f2a9c3d4e5b6a7f",
        "primary key: 8f2a9c3d4e5b6a7f",
        "def reset_token(user): return secrets.token_urlsafe(32)",
        "the recovery of the wallet took a long time and it was all about people and how they live there",
    ],
)
def test_what_is_no_secret(text):
    assert found(text) == {}


def test_a_hundred_assignments_in_one_word_count_as_a_secret():
    text = "password=" * 100 + "ordinary"
    assert "secret:assignments" in found(text).values()


def test_randomness():
    assert randomness.looks_random("4627u96o6w3i2lpgz9ty37lo", 16)
    assert randomness.looks_random("zekjcbhgkwjbbcicecex", 16)
    assert not randomness.looks_random("some-long-identifier-name", 16)
    assert not randomness.looks_random("internationalisation", 16)
    assert not randomness.looks_random("1234567890123456", 12)
    assert randomness.is_words("user_name-2024.v2")
    assert randomness.is_code("config.settings.token")
    assert randomness.is_uuid("1989bdbd-297f-c2b5-4a2a-5300dd6a5864")
