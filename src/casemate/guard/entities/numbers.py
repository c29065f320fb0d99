"""Numbers with a meaning: payment cards, bank accounts, telephone numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from casemate.guard.entities import checks
from casemate.guard.entities.window import Found, Window

_CARD = re.compile(r"(?<![\w.])\d(?:[ \-]?\d){11,18}(?![\w])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?(?![A-Za-z0-9])")
_PHONE_INTERNATIONAL = re.compile(r"(?<![\w+])(?:\+|00)[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){1,6}(?!\w)")


def find_cards(window: Window) -> Iterator[Found]:
    """Find payment card numbers: issuer range, length, Luhn."""
    for match in window.matches(_CARD):
        digits = "".join(c for c in match[0] if c.isdigit())
        if 12 <= len(digits) <= 19 and digits[0] in "23456" and checks.luhn(digits):  # noqa: PLR2004 - ISO/IEC 7812
            yield Found(*match.span(), "pii:CREDIT_CARD")


def find_ibans(window: Window) -> Iterator[Found]:
    """Find international bank account numbers."""
    for match in window.matches(_IBAN):
        if checks.mod97(match[0].replace(" ", "")):
            yield Found(*match.span(), "pii:IBAN_CODE")


def find_phones(window: Window) -> Iterator[Found]:
    """Find telephone numbers."""
    for match in window.matches(_PHONE_INTERNATIONAL):
        digits = sum(c.isdigit() for c in match[0])
        if 8 <= digits <= 15:  # noqa: PLR2004 - E.164
            yield Found(*match.span(), "pii:PHONE_NUMBER")
