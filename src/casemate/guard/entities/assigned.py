"""Secrets that only their surroundings give away: `DB_PASSWORD=...`, `token for x is ...`, `Authorization: Basic ...`.

A value is taken after an assignment (`=`, `:`, `is`) whose name speaks of a secret. How much the value itself must look
random depends on how plainly the name says it: a password may be short, a `key` must look made by a machine.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.providers import kind_of
from casemate.guard.entities.randomness import is_code, is_dummy, is_uuid, is_words, looks_random
from casemate.guard.entities.window import Found, Window
from casemate.guard.entities.words import word_set

NAME_REACH: Final = 72
GENERIC: Final = 500
_OPERATOR_REACH: Final = 8
_GAP: Final = 5
_ADJACENT_REACH: Final = 24
_ADJACENT_LEAST: Final = 12
_ADJACENT_KEY_LEAST: Final = 16
_MOST: Final = 48
_NAME_WORDS: Final = 5
_LAST_WORDS: Final = 2
_STRONG_LEAST: Final = 10
_WEAK_LEAST: Final = 14
_PASSWORD_LEAST: Final = 4
_SPOKEN_LEAST: Final = 5
_PASSWORD_MOST: Final = 128
_SHORTEST: Final = 3
_MIXED_LEAST: Final = 8
_IS: Final = ("is", "was", "are", "lautet", "ist", "est", "es", "\u00e8")
# Every alternative begins with a plain character, which lets `re` skip to it.
_OPERATOR = re.compile(
    r"(?::[:=]{0,2}>?|=[:=]{0,2}>?|\?=|->|"
    + "|".join(rf"{word}(?<![A-Za-z]{word})(?![A-Za-z])" for word in _IS)
    + r")[ \t]{0,3}(\"\"|[\"'`]?)"
)
_BEFORE_OPERATOR = re.compile(r"[\"'\])]{0,2}[ \t]{0,3}\Z")
_QUOTED: Final = {
    '"': re.compile(r'[^"\n]{3,512}'),
    '""': re.compile(r'[^"\s]{3,512}(?="")'),
    "'": re.compile(r"[^'\n]{3,512}"),
    "`": re.compile(r"[^`\n]{3,512}"),
}
_BARE = re.compile(r"[^\s\"'`<>]{3,512}")
_EXPRESSION = re.compile(
    r"\$\{|\{\{|\$\(|%\(|\A\$[A-Z_]{2,}|\A%\w+%\Z|\w\(|\)\Z|\A[a-z_]+(?:\.[a-z_]+)+\Z|environ|getenv|getpass"
)
_IN_QUERY = re.compile(r"[?&][\w.\-\[\]]{0,64}\Z")
_NEXT_ASSIGNMENT = re.compile(r"[;,&][\"']?[\w.\-]{1,40}[\"']?[=:]")
_CLAUSE = re.compile(r"[,;{}&?|\n]|[.!] ")
_WORD = re.compile(r"[^\W\d_]+|\d+[a-z]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_ADJACENT = re.compile(
    r"(?<![A-Za-z])(token|secret|password|passwd|passcode|passphrase|api[ _\-]?key|access[ _\-]?key|credential|key)s?"
    r"[ \t]{1,2}[\"'`(]?([^\s\"'`<>]{12,512})",
    re.IGNORECASE,
)
_PASSWORD: Final = word_set(
    """
    password passwd pwd pass passphrase passcode passwort kennwort contrase\u00f1a contrasena clave senha palavra
    wachtwoord has\u0142o haslo l\u00f6senord salasana psk wpa wpa2 parola heslo
    \u043f\u0430\u0440\u043e\u043b\u044c adgangskode passord jelsz\u00f3 \u03ba\u03c9\u03b4\u03b9\u03ba\u03cc\u03c2
    passe userpassword dbpassword pgpassword rootpassword sshpass mdp
    """
)
_STRONG: Final = word_set(
    """
    secret token apikey accesskey secretkey privatekey credential credentials bearer authtoken clientsecret
    authorization cookie session jwt sas accountkey sharedaccesskey connectionstring webhook apitoken accesstoken
    refreshtoken masterkey encryptionkey signingkey licensekey dsn seed xoxo
    """
)
_WEAK: Final = word_set(
    """
    key auth access private signature sig signing encryption license licence api
    """
)
_NAMING: Final = frozenset({"id", "pk", "sk", "client", "account"})
_PIN: Final = frozenset({"pin", "otp", "cvv", "cvc", "cvv2", "tan", "totp", "passcode"})
_TELLING: Final = _PASSWORD | _STRONG | _WEAK | _PIN | _NAMING | {"code"}
_CODES: Final = frozenset(
    {"verification", "security", "authentication", "login", "sms", "access", "time", "mfa", "auth"}
)
_LONGEST_PIN: Final = 8
_DENYING: Final = word_set(
    """
    public primary foreign cache sort partition index hash checksum fingerprint uuid etag sha sha1 sha256 sha512 md5
    digest trace span request build commit integrity max min length count limit tokens keys expires expiry ttl name
    type format policy url uri path file filename pubkey csrf nonce revision object version model
    """
)
_NOT_A_PASSWORD: Final = word_set(
    """
    password passwd required incorrect wrong invalid reset changed change expired correct missing empty null none
    nil undefined true false string text hidden yes no the a an not too weak strong set unset protected encrypted
    hashed stored here there your my our their admin user username email login enter forgot optional must should can
    will very always never only also necessary needed sent shown displayed masked long short secure safe unique
    different same default blank str int bytes secret token varchar value input field char nullable object boolean
    number
    """
)


def find_assigned(window: Window) -> Iterator[Found]:
    """Find values that a name before them calls a secret.

    After `_MOST` such names in one segment the rest of it counts as one secret: nobody writes that, and looking at each
    would take an attacker's time.
    """
    text, base = window.text, window.base
    operators = [*_OPERATOR.finditer(text, max(0, base - _OPERATOR_REACH))]
    if not operators or operators[-1].end() < base:
        return
    first = next(operator.end() for operator in operators if operator.end() >= base)
    if len(text) - first < _SHORTEST and len(operators) <= _MOST:
        return  # nothing long enough stands after any of them
    telling = _telling_words(text, max(0, base - NAME_REACH - _OPERATOR_REACH))
    if not telling:
        return
    seen = 0
    for operator in operators:
        nearest = bisect_left(telling, operator.start()) - 1
        if nearest >= 0 and operator.start() - telling[nearest] <= NAME_REACH:
            seen += 1
            if seen > _MOST:
                if operator.end() < len(text):
                    yield Found(max(base, operator.end()), len(text), "secret:assignments", GENERIC)
                return
            found = _assigned_value(text, base, operator)
            if found is not None:
                yield found


def _telling_words(text: str, start: int) -> list[int]:
    """Return where words that speak of secrets begin in *text* from *start* on."""
    return [
        word.start()
        for word in _WORD.finditer(text, start)
        if word[0] in _TELLING or (not word[0].islower() and _is_telling(word[0]))
    ]


def _is_telling(word: str) -> bool:
    """Return whether a word with capitals, or a part of one, speaks of secrets; `mDp` in random text does not."""
    return any(
        part.lower() in _TELLING and (part[1:].islower() or part.isupper()) for part in (word, *_CAMEL.split(word))
    )


def find_adjacent(window: Window) -> Iterator[Found]:
    """Find values that look random right after a word for a secret."""
    text, base = window.text, window.base
    for match in _ADJACENT.finditer(text, max(0, base - _ADJACENT_REACH)):
        value = match[2].rstrip(".,;:!?)")
        least = _ADJACENT_KEY_LEAST if match[1].lower() == "key" else _ADJACENT_LEAST
        if match.start(2) < base or not looks_random(value, least) or is_code(value):
            continue
        if _DENYING.isdisjoint(_name_words(text[max(0, match.start() - _ADJACENT_REACH) : match.start()])[-1:]):
            yield Found(match.start(2), match.start(2) + len(value), "secret:generic-api-key", GENERIC)


def _assigned_value(text: str, base: int, operator: re.Match[str]) -> Found | None:
    if operator.end() < base:
        return None
    end = operator.start()
    gap = _BEFORE_OPERATOR.search(text, max(0, end - _GAP), end)
    end = gap.start() if gap else end
    before = text[max(0, end - NAME_REACH) : end]
    quote = operator[1]
    value = (_QUOTED[quote] if quote else _BARE).match(text, operator.end())
    if value is None:
        return None
    start = value.start()
    shown = value[0].rstrip() if quote else _trimmed(value[0], before)
    if len(shown) < _SHORTEST or shown.isspace():
        return None
    spoken = operator[0].strip(" \t\"'`)]").isalpha()
    kind = _judge(_name_words(before), shown, quoted=bool(quote), spoken=spoken)
    if kind is None:
        return None
    doubled = quote == '""'
    return Found(start - doubled, start + len(shown) + doubled, f"secret:{kind}", GENERIC)


def _trimmed(value: str, before: str) -> str:
    """Return a bare value without the punctuation of the sentence or what follows it in a list of assignments."""
    if _IN_QUERY.search(before):
        value = value.partition("&")[0]
    following = _NEXT_ASSIGNMENT.search(value)
    if following is not None:
        value = value[: following.start()]
    return value.rstrip(".,;:)]}\\")


def _name_words(before: str) -> list[str]:
    """Return the last words of the name that stands before an assignment, in lower case."""
    words = _WORD.findall(_CLAUSE.split(before)[-1])[-_NAME_WORDS:]
    if all(word.islower() for word in words):
        return words
    return [part.lower() for word in words for part in _CAMEL.split(word)][-_NAME_WORDS:]


def _judge(words: list[str], value: str, *, quoted: bool, spoken: bool) -> str | None:
    """Return the kind of secret that *words* make of *value*, None when it is none."""
    if not _PASSWORD.isdisjoint(words):
        return "password" if _is_password(words, value, quoted=quoted, spoken=spoken) else None
    last = words[-_LAST_WORDS:]
    if value.isdigit() and len(value) <= _LONGEST_PIN:
        return "pin" if not _PIN.isdisjoint(last) or (last[-1:] == ["code"] and not _CODES.isdisjoint(words)) else None
    strong, weak = not _STRONG.isdisjoint(words), not _WEAK.isdisjoint(words)
    if not (strong or weak or not _NAMING.isdisjoint(last)) or is_dummy(value) or is_code(value):
        return None
    kind = kind_of(words, value)
    if kind is not None:
        return kind
    if not _DENYING.isdisjoint(last):
        return None
    if strong or not _WEAK.isdisjoint(last):
        return (
            "generic-api-key" if _is_made(value, _STRONG_LEAST if strong else _WEAK_LEAST, "id" not in last) else None
        )
    return None


def _is_made(value: str, least: int, uuid_counts: bool) -> bool:  # noqa: FBT001 - one call, named there
    """Return whether a machine made *value*: random characters, a UUID, or a long number."""
    if value.isdigit():
        return len(value) >= least
    return looks_random(value, least) or (uuid_counts and is_uuid(value))


def _is_password(words: list[str], value: str, *, quoted: bool, spoken: bool) -> bool:
    least = _SPOKEN_LEAST if spoken else _PASSWORD_LEAST
    if not least <= len(value) <= _PASSWORD_MOST or not is_password_text(value):
        return False
    if not _DENYING.isdisjoint(words[-_LAST_WORDS:]):
        return False
    if value.isdigit() or not is_words(value.rstrip("!?") if spoken else value):
        return True
    made = len(value) >= _MIXED_LEAST and any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return quoted or made or not (spoken or value[0].isupper())


def is_password_text(value: str) -> bool:
    """Return whether *value* can be a literal password: no variable, call, template or placeholder."""
    if is_dummy(value) or value[0] in "<[{(" or value[-1] == "(" or _EXPRESSION.search(value):
        return False
    return value.lower().strip("!?.") not in _NOT_A_PASSWORD
