"""Passwords in command lines, HTTP authorization headers and login files."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from casemate.guard.entities.assigned import GENERIC, is_password_text
from casemate.guard.entities.randomness import is_code, is_words, looks_random
from casemate.guard.entities.window import Found, Window

_BASIC = re.compile(r"(?<![A-Za-z])basic[ \t]{1,4}[\"']?([A-Za-z0-9+/]{8,400}={0,2})(?![A-Za-z0-9+/=])", re.IGNORECASE)
_BEARER = re.compile(r"(?<![A-Za-z])bearer[ \t]{1,4}[\"']?([A-Za-z0-9\-._~+/]{16,2000}={0,2})", re.IGNORECASE)
_FLAG = re.compile(r" (?:-p ?|-P |-a |-w )[\"']?([^\s\"']{4,64})")
_FLAG_OF = re.compile(
    r"(?<![A-Za-z])(?:mysql|mysqldump|mysqladmin|mariadb|sshpass|mongosh?|redis-cli|7z|zip|unzip|docker|psql|sqlcmd|ldapsearch)\b"
    r"[^\n|;]*\Z"
)
_CURL_USER = re.compile(r" (?:-u|--user|-a)[ =]?[\"']?[^\s:\"']{1,64}:([^\s\"']{4,128})")
_CURL = re.compile(r"(?<![A-Za-z])(?:curl|wget|http)\b[^\n|]*\Z")
_LONG_FLAG = re.compile(
    r"(?<![A-Za-z0-9])--?(?:password|passwd|pass|token|secret|api-key|apikey)[ =][\"']?([^\s\"']{4,256})", re.IGNORECASE
)
_NETRC = re.compile(r"(?<![A-Za-z])login[ \n]{1,4}[^\s]{1,64}[ \n]{1,4}password[ \n]{1,4}([^\s]{3,128})")
_NET_USER = re.compile(r"(?<![A-Za-z])net user [^\s]{1,64} ([^\s\"'/]{4,64})", re.IGNORECASE)
_TAG = re.compile(
    r"<[\w:.\-]{0,40}?(?:password|passwd|pwd|passphrase|secret|token|apikey|api_key|credential)[\w\-]{0,16}>\s?([^<\s]{4,256})(?=</)",
    re.IGNORECASE,
)
_CALL = re.compile(
    r"(?:token|secret|passw(?:or)?d|api_?key|auth|credentials?|login)\w{0,16}\("
    r"(?:[\"'][\w.@\-]{1,40}[\"'], ?)?[\"']([^\"'\s]{8,256})[\"']",
    re.IGNORECASE,
)
_PAIR = re.compile(r"(?<= )[\w.@\-]{1,40} ?/ ?([^\s\"'/:]{6,64})")
_LOGIN = re.compile(
    r"(?<![A-Za-z])(?:login|log in|sign in|logon|creds?|credentials?|account)[^\n/]{0,41}\Z", re.IGNORECASE
)
_USER_PAIR = re.compile(
    r"(?<![\w/.\-])(?:admin|root|administrator|user|guest|sa|postgres|ubuntu|pi)[:/]([^\s\"'/:]{6,64})", re.IGNORECASE
)
_CODE = re.compile(
    r"(?<![A-Za-z])(?:otp|pin|passcode|cvv2?|cvc2?|tan)(?: code)?[ #]{1,2}(\d{3,8})(?!\w)", re.IGNORECASE
)
_JWK = re.compile(r"\"d\"[ ]?:[ ]?\"([A-Za-z0-9_\-]{40,700})\"")
_NEAR: Final = 32
_WIDE: Final = 144
_AFTER_REACH: Final = 112
_LOGINS: Final = ("login", "log in", "sign in", "logon", "cred", "account")
_USERS: Final = ("admin", "root", "user", "guest", "sa", "postgres", "ubuntu", "pi")


class Row(NamedTuple):
    """A way to write a secret: signs that are cheap to look for, the pattern (its group is the secret), the check.

    `sign` is near the secret, one of `words` (if there are any) within `_WIDE` before it; both in lower case. `after`
    must match the text right before the pattern: it is only asked where the pattern is, which bounds the time.
    """

    kind: str
    sign: str
    pattern: re.Pattern[str]
    reach: int
    check: Callable[[str], bool]
    words: tuple[str, ...] = ()
    after: re.Pattern[str] | None = None


def find_in_commands(window: Window) -> Iterator[Found]:
    """Find the secrets of the table."""
    text, base = window.text, window.base
    near = text[max(0, base - _NEAR) :].lower()
    wide = text[max(0, base - _WIDE) :].lower()
    for sign, rows in _BY_SIGN:
        if sign not in near:
            continue
        for row in rows:
            if row.words and not any(word in wide for word in row.words):
                continue
            for match in row.pattern.finditer(text, max(0, base - row.reach)):
                if match.start(1) >= base and row.check(match[1]) and _stands_after(row.after, text, match.start()):
                    yield Found(*match.span(1), f"secret:{row.kind}", GENERIC)


def _stands_after(what: re.Pattern[str] | None, text: str, at: int) -> bool:
    return what is None or what.search(text, max(0, at - _AFTER_REACH), at) is not None


def _is_login(value: str) -> bool:
    """Return whether base64 *value* is `user:password`."""
    try:
        plain = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        return False
    user, colon, password = plain.partition(":")
    return bool(colon and password and user.isprintable() and password.isprintable())


def _is_bearer(value: str) -> bool:
    return looks_random(value, 16)


def _is_private_number(value: str) -> bool:
    return looks_random(value, 40)


def _is_strong(value: str) -> bool:
    """Return whether *value* looks like a chosen password even where nobody says so."""
    kinds = (any(c.isdigit() for c in value), any(c.isalpha() for c in value), any(not c.isalnum() for c in value))
    return sum(kinds) > 1 and kinds[1] and not is_words(value) and not is_code(value) and is_password_text(value)


def _is_strong_with_digit(value: str) -> bool:
    return _is_strong(value) and any(c.isdigit() for c in value)


def _is_given(value: str) -> bool:
    return looks_random(value, 12) or _is_strong(value)


def _is_code_number(value: str) -> bool:
    return value.isdigit()


ROWS: Final = (
    Row("basic-auth", "basic", _BASIC, 24, _is_login),
    Row("bearer-token", "bearer", _BEARER, 24, _is_bearer),
    Row("password", "-", _FLAG, 8, is_password_text, (" -p", " -a ", " -w "), _FLAG_OF),
    Row("curl-auth-user", "-", _CURL_USER, 80, is_password_text, ("curl", "wget", "http"), _CURL),
    Row("password", "-", _LONG_FLAG, 32, is_password_text, ("-pass", "-token", "-secret", "-api")),
    Row("password", "net user", _NET_USER, 80, _is_strong_with_digit),
    Row("password", "</", _TAG, 64, is_password_text),
    Row("generic-api-key", "(", _CALL, 64, _is_given, ("('", '("')),
    Row("password", "/", _PAIR, 48, _is_strong, _LOGINS, _LOGIN),
    Row("password", "/", _USER_PAIR, 24, _is_strong, tuple(f"{user}/" for user in _USERS)),
    Row("password", ":", _USER_PAIR, 24, _is_strong, tuple(f"{user}:" for user in _USERS)),
    Row("pin", "otp", _CODE, 16, _is_code_number),
    Row("pin", "pin", _CODE, 16, _is_code_number),
    Row("pin", "passcode", _CODE, 16, _is_code_number),
    Row("pin", "cv", _CODE, 16, _is_code_number),
    Row("netrc-password", "password", _NETRC, 140, is_password_text),
    Row("jwk-private-key", '"d"', _JWK, 16, _is_private_number),
)
COMMAND_SIGNS: Final = tuple(sorted({row.sign for row in ROWS}))
_BY_SIGN: Final = tuple((sign, tuple(row for row in ROWS if row.sign == sign)) for sign in COMMAND_SIGNS)
