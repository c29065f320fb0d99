"""What must stand near every value: the patterns that a fast scan looks for before any rule runs.

For each value that a detector finds, one of these matches ends inside the value's segment; where a word announces the
value, at most `AFTER` characters before it. They may match too much (a segment is then looked at in vain) but never too
little: a test compares texts redacted with and without them. No look-around and no back-references, so that Hyperscan
takes them as they are; `_HIGH` stands for what is not ASCII, in bytes as in characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

from casemate.guard.entities.tokens import TOKENS, Token
from casemate.guard.entities.words import word_set

AFTER: Final = 8
_PER_PATTERN: Final = 40
_LOOK: Final = 12
_FIRST_CLASS = re.compile(r"(\[[^\]]+\]|\\w)\{(\d+)")
_NAME_REACH: Final = 96
_CODE_REACH: Final = 40
_CAPITAL_REACH: Final = 4
_PHRASE_REACH: Final = 400
_HIGH: Final = r"[^\x00-\x7f]"
_SAYS_ABROAD: Final = (
    rf"has{_HIGH}{{1,2}}o|l{_HIGH}{{1,2}}senord|(?:"
    "\u043f\u0430\u0440\u043e\u043b\u044c|\u041f\u0430\u0440\u043e\u043b\u044c|\u041f\u0410\u0420\u041e\u041b\u042c|"
    "\u03ba\u03c9\u03b4\u03b9\u03ba|\u039a\u03c9\u03b4\u03b9\u03ba|\u039a\u03a9\u0394\u0399\u039a)"
)
_SHORT: Final = word_set(
    """
    id client account pk sk sig pin otp cvv cvc tan totp sas jwt dsn api psk wpa mdp key pass passe sshpass auth access
    session
    """
)
_SAYS_SECRET: Final = (
    "(?:passw|passph|passc|passord|pwd|secret|token|apikey|masterkey|accountkey|accesskey|cred|authori|cookie|seed|xoxo|"
    "bearer|webhook|licen|privat|signa|signi|encrypt|kennwort|contrase|clave|palavra|senha|wachtwoord|salasana|parola|heslo|haslo|adgangskode|jelsz|"
    f"connectionstring|administrator|{_SAYS_ABROAD})"
)
_ASSIGNS: Final = re.compile(
    r"[:=>]|(?i:\b(?:is|was|are|lautet|ist|est|es)\b|\u00e8)(?! {1,3}[a-z]{1,12}(?:\s|[.,;!?](?:\s|\Z)))"
    r"|(?P<stop>[|\n])"  # other signs that end a clause may stand in a value, and be gone when the rules look
)
_NUMBER: Final = re.compile(r"\d\w?")
_DECIMAL: Final = re.compile(r"\d\.\d{3}")
_NINE: Final = re.compile(r"[A-Z0-9]{9}")
_HEALTH_NUMBER: Final = re.compile(r"\d[A-Z]")
_CAPITAL: Final = re.compile(r"[^\W\d_a-z]")
_PHRASE: Final = re.compile(r"[A-Za-z]{3,8}(?:[\s,;|\-\"'0-9.:)(]{1,8}[A-Za-z]{3,8}){11}")


class Role(Enum):
    """What a match is for, where it is not simply a place."""

    PLACE = 0
    DIGITS = 1
    """A place, unless it is part of a date or a time and dates do not matter."""
    COLONS = 6
    """A place, unless it is a time of day."""
    DATE = 2
    """A place if dates matter."""
    BIRTH = 3
    """No place: it makes dates matter."""
    ANNOUNCEMENT = 4
    """What it announces begins at most `AFTER` characters later."""
    NAME = 5
    """The same, of a name."""


class Evidence(NamedTuple):
    """A pattern; `caseless` ignores the case of ASCII letters. `then`, at most `reach` after it, is the place."""

    pattern: str
    caseless: bool = False
    then: re.Pattern[str] | None = None
    role: Role = Role.PLACE
    reach: int = _NAME_REACH


def _beginnings() -> Iterator[str]:
    """Return patterns for the beginnings of tokens, each with a little of what follows."""
    starts = sorted(
        {f"{re.escape(start)}{_follows(token)}" for token in TOKENS for start in token.start.split("|") if start}
    )
    for first in range(0, len(starts), _PER_PATTERN):
        yield "|".join(starts[first : first + _PER_PATTERN])


def _short_words() -> str:
    """Return the pattern of words that are too short to be looked for inside others: `id`, `userId`, `APP_ID`."""
    small, title, large = ("|".join(sorted(map(form, _SHORT))) for form in (str.lower, str.title, str.upper))
    return (
        f"(?:^|[^A-Za-z])(?:{small}|{title})(?:[^a-z]|$)|[a-z](?:{title})(?:[^a-z]|$)"
        f"|(?:^|[^A-Z])(?:{large})(?:[^A-Za-z]|$)"
    )


def _follows(token: Token) -> str:
    """Return a pattern for what must follow the beginning of *token*: up to `_LOOK` characters of its first class."""
    first = _FIRST_CLASS.match(token.rest)
    return f"{first[1]}{{{min(int(first[2]), _LOOK)}}}" if first else r"[^\s\"'<>]{6}"


EVIDENCE: Final[tuple[Evidence, ...]] = (
    # Digits that belong together: cards, accounts, telephones, identity numbers, dates in digits
    Evidence(r"\d(?:[ .()/\-_]{0,4}\d){5}", role=Role.DIGITS),
    Evidence(r"[A-Za-z]{6} ?\d{2}[A-Za-z]\d{2}"),
    Evidence(r"\d[./\-]\d{1,2}[./\-]\d", role=Role.DATE),
    Evidence(r"[A-Za-z]{2}\d{2}[ .\-_/]{0,3}[A-Za-z0-9]{4}[ .\-_/]{0,3}[A-Za-z0-9]{4}"),
    Evidence(r"[A-Za-z]{5}\d{4}[A-Za-z]"),
    Evidence(
        r"pass|pasz|pasn|pasap|\u043f\u0430\u0441|\u041f\u0430\u0441|\u041f\u0410\u0421|\u62a4|\uc5ec",
        caseless=True,
        then=_NINE,
    ),
    Evidence(r"medicare|mbi", caseless=True, then=_HEALTH_NUMBER),
    Evidence(r"\d\.\d{1,3}\.\d{1,3}\.\d"),
    Evidence(r"\d\.\d{3,12} ?[,;/ ] ?-?\d{1,3}\.\d{3}"),
    Evidence(r"gps|lat|lon|lng|coord|geo|position|map", caseless=True, then=_DECIMAL),
    Evidence("\\d(?:\u00b0|\u5e74|\ub144)"),
    Evidence(
        rf"\d(?:st|nd|rd|th|\.)?[ \-](?:(?:of|de|del|di) )?(?:[A-Za-z]|{_HIGH}){{3,16}}\.?,?[ \-]"
        r"(?:(?:de|del|of) )?\d{4}",
        caseless=True,
        role=Role.DATE,
    ),
    Evidence(rf"(?:[A-Za-z]|{_HIGH}){{3}}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}", caseless=True, role=Role.DATE),
    Evidence(
        r"born|birth|dob|bday|geboren|geburts|\bgeb\b|naissance|nacid|nacim|cumple|\bnat[oa]\b|nascit|nascid|nascim|"
        rf"geboorte|urodz|syntyn|syntym|f{_HIGH}{{1,2}}d|narozen|n{_HIGH}{{1,2}}e?[ :(]|"
        "\u0440\u043e\u0434|\u0420\u043e\u0434|\u0420\u041e\u0414|\u0436\u0434|\u0416\u0414|\u751f|\uc0dd",
        caseless=True,
        role=Role.BIRTH,
    ),
    Evidence(
        r"zip|postcode|postal|plz|\bcap\b|\bcep\b|postleitzahl|postnummer|postinumero",
        caseless=True,
        then=_NUMBER,
        reach=_CODE_REACH,
    ),
    Evidence(r"\b(?:swift|bic)\b", caseless=True, role=Role.ANNOUNCEMENT),
    # Addresses of machines and mailboxes
    Evidence(r"@"),
    Evidence(r"%40|&#64;|&#x40;|&commat;|_at_|-at-|_dot_|-dot-", caseless=True),
    Evidence(rf"[\[({{<] ?(?:at|arroba|arobase|{_HIGH}|dot|\.|punto|punkt|point|ponto)", caseless=True),
    Evidence(r" (?:arroba|arobase|dot|punto|punkt|point|ponto) ", caseless=True),
    Evidence(r" at [^\s.]{1,63}\.[A-Za-z]", caseless=True),
    Evidence(r"://|www\.", caseless=True),
    Evidence(r"[0-9a-f:]:[0-9a-f]{0,4}:[0-9a-f:.]", caseless=True, role=Role.COLONS),
    Evidence(r"[0-9a-f]{2}[:\-][0-9a-f]{2}[:\-][0-9a-f]{2}[:\-]|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}", caseless=True),
    # Tokens, keys, wallets
    *(Evidence(pattern) for pattern in _beginnings()),
    Evidence(
        r"\dQ~|AZDO|[0-9a-f]NRAL|[0-9a-f]-us\d|\d:A|\d[%|][0-9a-zA-Z\-_]|\d:[0-9a-f]{32}|AAAAAAAAAA|_mmk|[0-9a-f]msh[0-9a-f]"
    ),
    Evidence(r"\.[\w\-]{6}\.[\w\-]{20}|\.atlasv1\.|-[a-h0-9]{8}-[a-h0-9]{8}"),
    Evidence(r"[cbdefghijklnrtuv]{8}-[cbdefghijklnrtuv]{8}-|[A-Z0-9]{4}-[A-Z0-9]{4}-[A-Z0-9]{4}-"),
    Evidence(r"[1-9A-HJ-NP-Za-km-z]{25}|0x[0-9a-fA-F]{40}|1[02-9ac-hj-np-z]{20}|1[02-9AC-HJ-NP-Z]{20}|cash:[qp]"),
    Evidence(r"---- ?BEGIN |PuTTY-User-Key-File-"),
    Evidence(
        r"seed|mnemonic|recovery|phrase|wallet|backup|bip-?39|secret words|12 words|24 words",
        caseless=True,
        then=_PHRASE,
        reach=_PHRASE_REACH,
    ),
    # Secrets that their surroundings give away
    Evidence(_SAYS_SECRET, caseless=True, then=_ASSIGNS, role=Role.ANNOUNCEMENT),
    Evidence(_short_words(), then=_ASSIGNS, role=Role.ANNOUNCEMENT),
    Evidence(
        r"(?:token|secret|password|passwd|passcode|passphrase|key|credential)s?"
        r"[ \t]{1,2}[\"'`(]?[^\s]{12}",
        caseless=True,
    ),
    Evidence(r"basic[ \t]{1,4}[\"']?[A-Za-z0-9+/]{8}|bearer[ \t]{1,4}[\"']?[A-Za-z0-9\-._~+/]{16}", caseless=True),
    Evidence(r"\s-[pPawu]|--user", role=Role.ANNOUNCEMENT),
    Evidence(
        r"net user [^\s]{1,64} |(?:otp|pin|passcode|cvv2?|cvc2?|tan)(?: code)?[ #]{1,2}\d",
        caseless=True,
        role=Role.ANNOUNCEMENT,
    ),
    Evidence(
        r"(?:password|passwd|pwd|passphrase|secret|token|apikey|api_key|credential)[\w\-]{0,16}>",
        caseless=True,
        role=Role.ANNOUNCEMENT,
    ),
    Evidence(
        r"(?:token|secret|passw|api_?key|auth|credential|login)\w{0,20}\([\"']", caseless=True, role=Role.ANNOUNCEMENT
    ),
    Evidence(
        r"(?:login|log in|sign in|logon|creds|cred |credential|account)[^\n/]{0,84}/"
        r"|(?:admin|root|administrator|user|guest|sa|postgres|ubuntu|pi)[:/]",
        caseless=True,
        role=Role.ANNOUNCEMENT,
    ),
    Evidence(
        r"(?:verif|secur|auth|login|sms|access|time|mfa)[^\n]{0,24}code",
        caseless=True,
        then=_ASSIGNS,
        role=Role.ANNOUNCEMENT,
    ),
    Evidence(r"--?(?:passw?|token|secret|api-?k)[^\s=]{0,8}[ =]", caseless=True, role=Role.ANNOUNCEMENT),
    Evidence(r"login[ \n]{1,4}[^\s]{1,64}[ \n]{1,4}password[ \n]", caseless=True, role=Role.ANNOUNCEMENT),
    Evidence(r"\"d\" ?: ?\"", role=Role.ANNOUNCEMENT),
    # Names after the words that announce them
    Evidence(
        r"\b(?:mr|mrs|ms|miss|mx|dr|prof|sir|madam|herr|frau|monsieur|madame|mme|mlle|sra|sr|srta|signor|signora|sig|dott|"
        rf"pan|pani|rev|capt|sgt|lt|col|se{_HIGH}{{1,2}}ora?|do{_HIGH}{{1,2}}a)\.?\s",
        caseless=True,
        then=_CAPITAL,
        role=Role.NAME,
        reach=_CAPITAL_REACH,
    ),
    Evidence(
        r"(?:name is|name's|i am called|i'm called|call me|this is|regards,|sincerely,|truly,|cheers,|dear|attn:?|c/o"
        rf"|signed(?: by)?[,:]?|name ist|ich hei{_HIGH}{{1,2}}e|m'appelle|nom est|me llamo|nombre es|mi chiamo|contact"
        rf"|nome {_HIGH}{{1,2}}|chamo-me|naam is|ik heet|jag heter|namn {_HIGH}{{1,2}}r|nazywam si{_HIGH}{{1,2}}"
        r"|nimeni on"
        rf"|holder:?|patient:|(?:name|nom|nome|naam|namn|nimi|nombre|pr{_HIGH}{{1,2}}nom) ?[:=])\s",
        caseless=True,
        then=_CAPITAL,
        role=Role.NAME,
        reach=_CAPITAL_REACH,
    ),
    # Links of an answer
    Evidence(
        r"[(:=\"'< ][\\/]{2}[a-z0-9]|\n[\\/]{2}[a-z0-9]|(?:data|javascript|vbscript|file|blob):[^\s]", caseless=True
    ),
    # Letters one by one
    Evidence(r"(?:[^\s] {1,3}){6}"),
)
