"""Addresses of machines and mailboxes: e-mail, IPv4 and IPv6, MAC, passwords in URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.window import Found, Window

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9\u00c0-\u024f][A-Za-z0-9\u00c0-\u024f._%+\-]{0,63}@"
    r"(?:[A-Za-z0-9\u00c0-\u024f](?:[A-Za-z0-9\u00c0-\u024f\-]{0,61}[A-Za-z0-9\u00c0-\u024f])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_AT: Final = r"(?: ?[\[({<] ?(?:at|@|arroba|arobase) ?[\])}>] ?| ?@ ?| (?:at|AT|arroba|arobase) )"
_DOT: Final = (
    r"(?: ?[\[({<] ?(?:dot|\.|punto|punkt|point|ponto) ?[\])}>] ?| ?\. ?| (?:dot|DOT|punto|punkt|point|ponto) )"
)
_WRITTEN_EMAIL = re.compile(
    rf"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9][A-Za-z0-9._%+\-]{{0,63}}{_AT}"
    rf"[A-Za-z0-9][A-Za-z0-9\-]{{0,61}}(?:{_DOT}[A-Za-z0-9][A-Za-z0-9\-]{{0,61}}){{0,4}}{_DOT}[A-Za-z]{{2,12}}(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_IPV4 = re.compile(r"(?<![\w.\-])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w\-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])")
_MAC = re.compile(r"(?<![\w:\-])[0-9A-Fa-f]{2}(?:([:\-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}(?![\w:\-])")
_URL_PASSWORD = re.compile(r"\b[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s:/?#@\"'<>]{0,128}:([^\s@/\"'<>]{1,256})@(?=[\w\[])")


def find_email(window: Window) -> Iterator[Found]:
    """Find e-mail addresses, plain and written with words."""
    text = window.text
    if text.find("@", window.base) >= 0:
        for match in window.matches(_EMAIL):
            yield Found(*match.span(), "pii:EMAIL_ADDRESS")


def find_network(window: Window) -> Iterator[Found]:
    """Find IP and MAC addresses."""
    for match in window.matches(_IPV4):
        yield Found(*match.span(), "pii:IP_ADDRESS")
    for match in window.matches(_MAC):
        yield Found(*match.span(), "pii:MAC_ADDRESS")
    for match in window.matches(_IPV6):
        if _is_ipv6(match[0]):
            yield Found(*match.span(), "pii:IP_ADDRESS")


def find_url_password(window: Window) -> Iterator[Found]:
    """Find the password in `scheme://user:password@host`."""
    if window.text.find("://", window.base) >= 0:
        for match in window.matches(_URL_PASSWORD):
            yield Found(*match.span(1), "secret:url-credentials")


def _is_ipv6(text: str) -> bool:
    groups = [group for group in text.split(":") if group]
    if "::" in text:
        return text.count("::") == 1 and ":::" not in text and 2 <= len(groups) <= 7  # noqa: PLR2004 - RFC 4291
    return len(groups) == 8 or (len(groups) == 7 and "." in groups[-1])  # noqa: PLR2004 - RFC 4291
