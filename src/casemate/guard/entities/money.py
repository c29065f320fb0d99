"""Payment cards and international bank accounts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.checks import luhn, mod97, varied
from casemate.guard.entities.window import Found, Window
from casemate.guard.entities.words import word_set

_CARD = re.compile(r"(?<![\w\-])(?<![.,]\d)\d(?:[ .\-_/]{0,3}\d){11,18}(?!\w)(?![.,\-]\d)")
_IN_A_ROW = re.compile(r"\d[. ]{1,2}\Z")
GAP: Final = 3
# Issuer ranges (ISO/IEC 7812) that stand without a word: first digits, lengths.
_ISSUERS: Final = (
    (re.compile(r"4"), (16,)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"6011|64[4-9]|65"), (16,)),
    (re.compile(r"35(?:2[89]|[3-8])"), (16,)),
    (re.compile(r"62"), (16,)),
    (re.compile(r"220[0-4]"), (16,)),
)
_LABELLED: Final = re.compile(r"[2-6]|1800")
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ .\-_/]{0,3}[A-Za-z0-9]{4}){2,7}(?:[ .\-_/]{0,3}[A-Za-z0-9]{1,3})?"
    r"(?![A-Za-z0-9])"
)
_IBAN_LENGTHS: Final = {
    entry[:2]: int(entry[3:])
    for entry in word_set(
        """
        AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DJ:27
        DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FK:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HN:28 HR:21 HU:28
        IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22
        MK:19 MN:20 MR:27 MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 RU:33 SA:24
        SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20 YE:30
        """
    )
}
_SWIFT = re.compile(
    r"(?<![A-Za-z])(?i:swift|bic)(?i:/bic)?(?: (?i:code|number|no))?\.?(?: ?[:=]| (?i:is))? ?"
    r"([A-Z]{6}[A-Z0-9]{2}(?:[A-Z0-9]{3})?)(?![A-Za-z0-9])"
)
_SWIFT_REACH: Final = 28


def find_cards(window: Window) -> Iterator[Found]:
    """Find payment card numbers: Luhn, then an issuer's range or a word that says card."""
    if window.digits < 12:  # noqa: PLR2004 - the shortest card number
        return
    last = -GAP
    for match in window.matches(_CARD):
        if _IN_A_ROW.search(window.text, max(0, match.start() - GAP), match.start()) and match.start() - last > GAP:
            continue
        digits = "".join(c for c in match[0] if c.isdigit())
        if not (luhn(digits) and varied(digits) and _is_grouped(match[0])):
            continue
        last = match.end()
        rank = window.near(match.start(), "card")
        if rank is not None and _LABELLED.match(digits):
            yield Found(*match.span(), "pii:CREDIT_CARD", rank)
        elif _issued(digits) and not window.denied(match.start()):
            yield Found(*match.span(), "pii:CREDIT_CARD", 999)


def find_ibans(window: Window) -> Iterator[Found]:
    """Find international bank account numbers: a country's length and the check digits."""
    if window.digits < 2:  # noqa: PLR2004 - the check digits
        return
    for match in window.matches(_IBAN):
        found = _iban(match)
        if found is not None:
            yield found
        elif window.near(match.start(), "iban") is not None and mod97("".join(c for c in match[0] if c.isalnum())):
            yield Found(*match.span(), "pii:IBAN_CODE")  # said to be one and checked: any length


def find_swift(window: Window) -> Iterator[Found]:
    """Find a bank's SWIFT code after its name."""
    for match in _SWIFT.finditer(window.text, max(0, window.base - _SWIFT_REACH)):
        if match.start(1) >= window.base:
            yield Found(*match.span(1), "pii:SWIFT_CODE")


def _iban(match: re.Match[str]) -> Found | None:
    """Return the account number that begins with *match*; a word after it may have been taken for a last group."""
    size = _IBAN_LENGTHS.get(match[0][:2].upper())
    if size is None:
        return None
    seen = 0
    for at, character in enumerate(match[0]):
        seen += character.isalnum()
        if seen == size:
            value = "".join(c for c in match[0][: at + 1] if c.isalnum())
            ends = at + 1 == len(match[0]) or not match[0][at + 1].isalnum()
            return Found(match.start(), match.start() + at + 1, "pii:IBAN_CODE") if ends and mod97(value) else None
    return None


def _is_grouped(text: str) -> bool:
    """Return whether points in *text* stand between groups, not inside a decimal number."""
    groups = text.split(".")
    return len(groups) == 1 or (len(groups) > 2 and all(2 <= len(group) <= 6 for group in groups))  # noqa: PLR2004


def _issued(digits: str) -> bool:
    return any(len(digits) in lengths and pattern.match(digits) for pattern, lengths in _ISSUERS)
