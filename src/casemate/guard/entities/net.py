"""Addresses of machines and mailboxes: e-mail, URL, IPv4 and IPv6, MAC, passwords in URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.window import Found, Window
from casemate.guard.entities.words import word_set

_LETTER: Final = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f"
_LABEL: Final = rf"[{_LETTER}](?:[{_LETTER}\-]{{0,61}}[{_LETTER}])?"
_EMAIL = re.compile(
    rf"(?<![{_LETTER}._%+\-])[{_LETTER}_][{_LETTER}._%+'\-]{{0,63}}@"
    rf"(?:{_LABEL}\.){{1,8}}[A-Za-z\u0400-\u04ff]{{2,24}}(?![A-Za-z0-9])"
)
_AT: Final = (
    r"(?: ?[\[({<] ?(?:at|@|arroba|arobase|\u00e4t) ?[\])}>] ?| ?@ ?| (?:arroba|arobase) "
    r"|%40|&#64;|&#x40;|&commat;|_at_|-at-)"
)
_DOT: Final = (
    r"(?: ?[\[({<] ?(?:dot|\.|punto|punkt|point|ponto) ?[\])}>] ?| ?\. ?| (?:dot|punto|punkt|point|ponto) |_dot_|-dot-)"
)
_SAID_DOT: Final = (
    r"(?: ?[\[({<] ?(?:dot|\.|punto|punkt|point|ponto) ?[\])}>] ?| (?:dot|punto|punkt|point|ponto) |_dot_|-dot-)"
)
_NAME: Final = (
    rf"(?<![{_LETTER}.%+\-])[{_LETTER}](?:[{_LETTER}.%+\-]|_(?!at_)){{0,63}}?(?:{_SAID_DOT}[{_LETTER}\-]{{1,63}}?)?"
)
_PART: Final = rf"[{_LETTER}][{_LETTER}\-]{{0,61}}?"
_WRITTEN_EMAIL = re.compile(rf"{_NAME}(?:(?P<at>{_AT})|(?P<spoken> at )){_PART}(?={_DOT})", re.IGNORECASE)
_WRITTEN_PART = re.compile(
    rf"(?P<dot>{_DOT})(?P<part>[{_LETTER}](?:(?!-dot-|_dot_)[{_LETTER}\-]){{0,61}})", re.IGNORECASE
)
_MOST_PARTS: Final = 6
_MAIL_WORD = re.compile(r"mail|write|reach|contact|send|@|correo|courriel|posta|schreib", re.IGNORECASE)
_MAIL_REACH: Final = 48
_SIGNS_OF_WRITING: Final = ("@", "at", "AT", "At", "arroba", "arobase", "%40", "&#", "&commat", "\u00e4t")
_TLDS: Final = word_set(
    """
    ac ad ae aero af ag agency ai al am ao app aq ar art as asia at au aw ax az ba bank bb bd be berlin bf bg bh bi
    biz bj blog bm bn bo br bs bt bw by bz ca care cat cc cd cf cg ch ci ck cl cloud club cm cn co com coop cr cu cv
    cw cx cy cz de design dev digital dj dk dm do dz ec edu ee eg email er es et eu eus example fi fj fk fm fo fr ga
    gal gb gd ge gf gg gh gi gl gm gmbh gn gov gp gq gr group gt gu gw gy hamburg health hk hm hn hr ht hu id ie il
    im info int internal invalid io iq ir is it je jm jo jobs jp ke kg kh ki km kn koeln kp kr kw ky kz la law lb lc
    li life live lk local london lr ls lt lu lv ly ma mail mc md me mg mh mil mk ml mm mn mo mobi mp mq mr ms mt mu
    museum mv mw mx my mz na name nc ne net news nf ng ni nl no np nr nu nyc nz om online org pa paris pe pf pg ph
    pk pl pm pn pr pro ps pt pw py qa re ro rs ru rw sa sb sc school scot sd se sg sh shop si site sk sl sm sn so
    space sr ss st store studio sv swiss sx sy sz tc td team tech test tf tg th tj tk tl tm tn to today tokyo tr
    travel tt tv tw tz ua ug uk university us uy uz va vc ve vg vi vn vu website wf wien wiki work world ws xyz ye
    yt za zm zone zw
    """
)
_OCTET: Final = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4 = re.compile(
    rf"(?<![\w.\-])(?:{_OCTET}(?:\.|[\[(](?:\.|dot)[\])])){{3}}{_OCTET}(?![\w\-]|\.\d)",
    re.IGNORECASE,
)
_DEFANGED = re.compile(r"[\[(](?:\.|dot)[\])]", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{1,4})?(?![\w:])")
_MAC = re.compile(
    r"(?<![\w:\-])(?:[0-9A-Fa-f]{2}([:\-])[0-9A-Fa-f]{2}(?:\1[0-9A-Fa-f]{2}){4}|(?:[0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4})(?![\w:\-])"
)
_URL = re.compile(r"(?<![A-Za-z0-9])(?:(?:https?|ftp|wss?)://|www\.)[^\s<>\"'`{}|\\^\[\]]{4,1000}", re.IGNORECASE)
_TRAILING: Final = ".,;:!?)*_"
_URL_PASSWORD = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s:/?#@\"'<>]{0,128}:([^\s/\"'<>]{1,256})@(?=[\w\[])"
)
_USERINFO = re.compile(r"://[^\s/]{0,128}\Z")
_TEMPLATE = re.compile(r"[<>{}$*]|\A(?:password|passwd|pass|pwd|secret|token|x+)\Z", re.IGNORECASE)
_SMALL_OCTET: Final = 40
_NOBODY: Final = frozenset({"0.0.0.0", "127.0.0.1"})  # noqa: S104 - nothing is bound here


def find_email(window: Window) -> Iterator[Found]:
    """Find e-mail addresses, plain and written with words or entities."""
    segment = window.text[window.base :]
    if not any(sign in segment for sign in _SIGNS_OF_WRITING):
        return
    if "@" in segment:
        for match in window.matches(_EMAIL):
            if not _in_userinfo(window.text, match.start()):
                yield Found(*match.span(), "pii:EMAIL_ADDRESS")
    for match in window.matches(_WRITTEN_EMAIL):
        end = _written_end(window.text, match)
        if end is not None and not _in_userinfo(window.text, match.start()):
            yield Found(match.start(), end, "pii:EMAIL_ADDRESS")


def _written_end(text: str, match: re.Match[str]) -> int | None:
    """Return where a written address ends: after the last part that can be a top-level domain.

    A plain ` at ` counts when a dot is written as a word too, or when somebody speaks of mail before it.
    """
    end, at = None, match.end()
    said_dot = _MAIL_WORD.search(text, max(0, match.start() - _MAIL_REACH), match.start()) is not None
    for _ in range(_MOST_PARTS):
        part = _WRITTEN_PART.match(text, at)
        if part is None:
            break
        at = part.end()
        said_dot = said_dot or part["dot"] != "."
        top = part["part"].lower()
        tight = match["at"] is not None and " " not in part["dot"]
        if top in _TLDS or (tight and top.isalpha() and 2 <= len(top) <= 12):  # noqa: PLR2004 - the longest usual ones
            end = at
    return end if match["at"] is not None or said_dot else None


def _in_userinfo(text: str, at: int) -> bool:
    """Return whether *at* stands between a URL's scheme and its host: what precedes the `@` there is a password."""
    return _USERINFO.search(text, max(0, at - 140), at) is not None


def find_network(window: Window) -> Iterator[Found]:
    """Find IP and MAC addresses."""
    segment = window.text[window.base :]
    if "." in segment and window.digits >= 4:  # noqa: PLR2004 - four octets
        for match in window.matches(_IPV4):
            if _is_ipv4(window, match):
                yield Found(*match.span(), "pii:IP_ADDRESS")
    if segment.count(":") > 1 or "-" in segment or "." in segment:
        for match in window.matches(_MAC):
            if any(c.isdigit() for c in match[0]) and match[0].count("0") < 12:  # noqa: PLR2004 - all zeros
                yield Found(*match.span(), "pii:MAC_ADDRESS")
    if segment.count(":") > 1:
        for match in window.matches(_IPV6):
            if _is_ipv6(match[0]):
                yield Found(*match.span(), "pii:IP_ADDRESS")


def find_urls(window: Window) -> Iterator[Found]:
    """Find URLs without credentials; one that is only a host is a domain name."""
    segment = window.text[window.base :]
    if "://" not in segment and "www." not in segment.lower():
        return
    for match in window.matches(_URL):
        url = match[0].rstrip(_TRAILING)
        rest = url.partition("://")[2] or url
        host, slash, path = rest.partition("/")
        if "@" not in host and ("." in host or ":" in host):
            kind = "pii:URL" if path or "?" in host else "pii:DOMAIN_NAME"
            yield Found(match.start(), match.start() + len(url), kind, int(bool(slash)))


def find_url_password(window: Window) -> Iterator[Found]:
    """Find the password in `scheme://user:password@host`."""
    if window.text.find("://", window.base) < 0:
        return
    for match in window.matches(_URL_PASSWORD):
        if not _TEMPLATE.search(match[1]) or len(set(match[1])) > 5:  # noqa: PLR2004 - $ and * also occur in passwords
            yield Found(*match.span(1), "secret:url-credentials")


def _is_ipv4(window: Window, match: re.Match[str]) -> bool:
    """Tell an address from a version: small numbers need a word that says address."""
    address = _DEFANGED.sub(".", match[0])
    if address in _NOBODY or address.startswith("255.255."):
        return False
    octets = [int(octet) for octet in address.split(".")]
    if any(len(octet) > 1 and octet[0] == "0" for octet in address.split(".")):
        return False
    if address != match[0]:
        return True  # nobody writes a version like that
    if window.near(match.start(), "ip") is not None:
        return True
    return max(octets) >= _SMALL_OCTET and not window.denied(match.start())


def _is_ipv6(text: str) -> bool:
    groups = [group for group in text.split(":") if group]
    if not any(c.isdigit() for c in text):
        return False
    if "::" in text:
        return text.count("::") == 1 and ":::" not in text and 1 < len(groups) < 8  # noqa: PLR2004 - RFC 4291
    return len(groups) == 8 or (len(groups) == 7 and "." in groups[-1])  # noqa: PLR2004 - RFC 4291
