"""What must stand near every value: the patterns that a fast scan looks for before any rule runs.

For each value that a detector finds, one of these matches ends inside the value's segment, or at most `AFTER`
characters before it. They may match too much (a segment is then looked at in vain) but never too little: a test
compares texts redacted with and without them. No look-around and no back-references, so that Hyperscan takes them as
they are; `_HIGH` stands for what is not ASCII, in bytes as in characters.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

AFTER: Final = 8
THEN_REACH: Final = 176
_HIGH: Final = r"[^\x00-\x7f]"
_RUN: Final = r"[A-Za-z0-9_\-+/=.~:%$]"
_TELLING: Final = r"[0-9_=+%$~]"
_SAYS_ABROAD: Final = (
    rf"has{_HIGH}{{1,2}}o|l{_HIGH}{{1,2}}senord|(?:"
    "\u043f\u0430\u0440\u043e\u043b\u044c|\u041f\u0430\u0440\u043e\u043b\u044c|\u041f\u0410\u0420\u041e\u041b\u042c|"
    "\u03ba\u03c9\u03b4\u03b9\u03ba|\u039a\u03c9\u03b4\u03b9\u03ba|\u039a\u03a9\u0394\u0399\u039a)"
)
_SHORT: Final = "(?:id|pk|sk|pin|otp|cvv|cvc|tan|totp|sas|jwt|dsn|api|psk|wpa|mdp)"
_SAYS_SECRET: Final = (
    "(?:pass|pwd|secret|token|key|cred|auth|session|cookie|seed|xoxo|bearer|webhook|licen|privat|sign|encrypt|access|code|"
    "kennwort|contrase|clave|palavra|senha|wachtwoord|salasana|parola|heslo|haslo|adgangskode|jelsz|connectionstring|"
    rf"administrator|{_SAYS_ABROAD}|\b{_SHORT}\b|\b[a-z]{{1,20}}_{_SHORT}\b|\b{_SHORT}_[a-z]{{1,20}}\b)"
)
_ASSIGNS: Final = re.compile(r"[:=>]|\b(?:is|was|are|lautet|ist|est|es)\b|\u00e8", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\d\w?")
_PHRASE: Final = re.compile(r"[A-Za-z]{3,8}(?:[\s,;|\-\"'0-9.:)(]{1,8}[A-Za-z]{3,8}){11}")


class Evidence(NamedTuple):
    """A pattern; `caseless` ignores the case of ASCII letters. `then`, within `THEN_REACH` after it, is the place."""

    pattern: str
    caseless: bool = False
    then: re.Pattern[str] | None = None


EVIDENCE: Final[tuple[Evidence, ...]] = (
    # Digits that belong together: cards, accounts, telephones, identity numbers, dates in digits
    Evidence(r"\d(?:[ .()/\-]{0,6}\d){5}"),
    Evidence(r"\d(?:[A-Za-z]{0,2}[ .\-]?[A-Za-z]{0,2}\d){4}"),
    Evidence(r"\d[./\-]\d{1,2}[./\-]\d"),
    Evidence(r"[A-Za-z]{2}\d{2}[ .\-]?[A-Za-z0-9]{4}[ .\-]?[A-Za-z0-9]{4}"),
    Evidence(r"[A-Za-z]{5}\d{4}[A-Za-z]"),
    Evidence(r"[A-Z0-9]{9}"),
    Evidence(r"\d\.\d{1,3}\.\d{1,3}\.\d"),
    Evidence(r"\d\.\d{3}"),
    Evidence(rf"\d{_HIGH}"),
    Evidence(
        rf"\d(?:st|nd|rd|th|\.)?[ \-](?:(?:of|de|del|di) )?(?:[A-Za-z]|{_HIGH}){{3,16}}\.?,?[ \-]"
        r"(?:(?:de|del|of) )?\d{4}",
        caseless=True,
    ),
    Evidence(rf"(?:[A-Za-z]|{_HIGH}){{3}}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}", caseless=True),
    Evidence(
        r"zip|postcode|postal|plz|cap|cep|postleitzahl|postnummer|postinumero",
        caseless=True,
        then=_NUMBER,
    ),
    Evidence(r"\b(?:swift|bic)\b", caseless=True),
    # Addresses of machines and mailboxes
    Evidence(r"@"),
    Evidence(r"%40|&#64;|&#x40;|&commat;|_at_|-at-|_dot_|-dot-", caseless=True),
    Evidence(rf"[\[({{<] ?(?:at|arroba|arobase|{_HIGH}|dot|\.|punto|punkt|point|ponto)", caseless=True),
    Evidence(r" (?:arroba|arobase|dot|punto|punkt|point|ponto) ", caseless=True),
    Evidence(r" at [^\s.]{1,63}\.[A-Za-z]", caseless=True),
    Evidence(r"://|www\.", caseless=True),
    Evidence(r"[0-9a-f:]:[0-9a-f]{0,4}:[0-9a-f:.]", caseless=True),
    Evidence(r"[0-9a-f]{2}[:\-][0-9a-f]{2}[:\-][0-9a-f]{2}[:\-]|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}", caseless=True),
    # Tokens, keys, wallets
    Evidence(rf"{_RUN}{{6}}{_TELLING}|{_TELLING}{_RUN}{{6}}"),
    Evidence(rf"{_RUN}{{6}}[A-Z]|{_RUN}[A-Z]{_RUN}{{6}}"),
    Evidence(r"[cbdefghijklnrtuv]{8}-[cbdefghijklnrtuv]{8}-"),
    Evidence(r"---- ?BEGIN |PuTTY-User-Key-File-"),
    Evidence(
        r"seed|mnemonic|recovery|phrase|wallet|backup|bip-?39|secret words|12 words|24 words",
        caseless=True,
        then=_PHRASE,
    ),
    # Secrets that their surroundings give away
    Evidence(_SAYS_SECRET, caseless=True, then=_ASSIGNS),
    Evidence(r"[a-z](?:Id|Pin|Otp|Pk|Sk|Tan|Sas|Jwt|Api)\b", then=_ASSIGNS),
    Evidence(
        r"(?:token|secret|password|passwd|passcode|passphrase|api[ _\-]?key|access[ _\-]?key|credential)s?"
        r"[ \t]{1,2}[\"'`(]?[^\s]{12}",
        caseless=True,
    ),
    Evidence(r"basic[ \t]{1,4}[\"']?[A-Za-z0-9+/]{8}|bearer[ \t]{1,4}[\"']?[A-Za-z0-9\-._~+/]{16}", caseless=True),
    Evidence(r"\s-[pPawu]|--user"),
    Evidence(r"--?(?:pass|token|secret|api)", caseless=True),
    Evidence(r"login[ \n]{1,4}[^\s]{1,64}[ \n]{1,4}password[ \n]", caseless=True),
    Evidence(r"\"d\" ?: ?\""),
    # Names after the words that announce them
    Evidence(
        r"\b(?:mr|mrs|ms|miss|mx|dr|prof|sir|madam|herr|frau|monsieur|madame|mme|mlle|sra|sr|srta|signor|signora|sig|dott|"
        rf"pan|pani|rev|capt|sgt|lt|col|se{_HIGH}{{1,2}}ora?|do{_HIGH}{{1,2}}a)\.?\s",
        caseless=True,
    ),
    Evidence(
        r"(?:name is|name's|i am called|i'm called|call me|this is|regards,|sincerely,|truly,|cheers,|dear|attn:?|c/o"
        rf"|signed(?: by)?[,:]?|name ist|ich hei{_HIGH}{{1,2}}e|m'appelle|nom est|me llamo|nombre es|mi chiamo|contact"
        rf"|nome {_HIGH}{{1,2}}|chamo-me|naam is|ik heet|jag heter|namn {_HIGH}{{1,2}}r|nazywam si{_HIGH}{{1,2}}|nimeni on"
        rf"|holder:?|patient:|(?:name|nom|nome|naam|namn|nimi|nombre|pr{_HIGH}{{1,2}}nom) ?[:=])\s",
        caseless=True,
    ),
    # Letters one by one
    Evidence(r"(?:[^\s] {1,3}){6}"),
)
