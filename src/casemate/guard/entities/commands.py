"""Passwords in command lines, HTTP authorization headers and login files."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from casemate.guard.entities.assigned import GENERIC, is_password_text
from casemate.guard.entities.randomness import looks_random
from casemate.guard.entities.window import Found, Window

_BASIC = re.compile(r"(?<![A-Za-z])basic[ \t]{1,4}[\"']?([A-Za-z0-9+/]{8,400}={0,2})(?![A-Za-z0-9+/=])", re.IGNORECASE)
_BEARER = re.compile(r"(?<![A-Za-z])bearer[ \t]{1,4}[\"']?([A-Za-z0-9\-._~+/]{16,2000}={0,2})", re.IGNORECASE)
_FLAG = re.compile(
    r"(?<![A-Za-z])(?:mysql|mysqldump|mysqladmin|mariadb|sshpass|mongosh?|redis-cli|7z|zip|unzip|docker|psql|sqlcmd|ldapsearch)\b"
    r"[^\n|;]{0,100}? (?:-p ?|-P |-a |-w )[\"']?([^\s\"']{4,64})"
)
_CURL_USER = re.compile(
    r"(?<![A-Za-z])(?:curl|wget|http)\b[^\n|]{0,120}? (?:-u|--user|-a)[ =]?[\"']?[^\s:\"']{1,64}:([^\s\"']{4,128})"
)
_LONG_FLAG = re.compile(
    r"(?<![A-Za-z0-9])--?(?:password|passwd|pass|token|secret|api-key|apikey)[ =][\"']?([^\s\"']{4,256})", re.IGNORECASE
)
_NETRC = re.compile(r"(?<![A-Za-z])login[ \n]{1,4}[^\s]{1,64}[ \n]{1,4}password[ \n]{1,4}([^\s]{3,128})")
_JWK = re.compile(r"\"d\"[ ]?:[ ]?\"([A-Za-z0-9_\-]{40,700})\"")
_NEAR: Final = 32


class Row(NamedTuple):
    """A way to write a secret: a sign that is cheap to look for, the pattern (its group is the secret), the check."""

    kind: str
    sign: str
    pattern: re.Pattern[str]
    reach: int
    check: Callable[[str], bool]


def find_in_commands(window: Window) -> Iterator[Found]:
    """Find the secrets of the table."""
    text, base = window.text, window.base
    near = text[max(0, base - _NEAR) :].lower()
    for row in ROWS:
        if row.sign not in near:
            continue
        for match in row.pattern.finditer(text, max(0, base - row.reach)):
            if match.start(1) >= base and row.check(match[1]):
                yield Found(*match.span(1), f"secret:{row.kind}", GENERIC)


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


ROWS: Final = (
    Row("basic-auth", "basic", _BASIC, 24, _is_login),
    Row("bearer-token", "bearer", _BEARER, 24, _is_bearer),
    Row("password", "-", _FLAG, 128, is_password_text),
    Row("curl-auth-user", "-", _CURL_USER, 140, is_password_text),
    Row("password", "-", _LONG_FLAG, 32, is_password_text),
    Row("netrc-password", "password", _NETRC, 140, is_password_text),
    Row("jwk-private-key", '"d"', _JWK, 16, _is_private_number),
)
