"""Runs the detectors that can find something in a window, and none for a plain word that nothing announces."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from casemate.guard.entities.assigned import find_adjacent, find_assigned
from casemate.guard.entities.coins import find_coins
from casemate.guard.entities.commands import COMMAND_SIGNS, find_in_commands
from casemate.guard.entities.dates import find_dates
from casemate.guard.entities.money import find_cards, find_ibans, find_swift
from casemate.guard.entities.names import find_names
from casemate.guard.entities.net import find_email, find_network, find_url_password, find_urls
from casemate.guard.entities.numbers import find_numbers
from casemate.guard.entities.phones import find_phones
from casemate.guard.entities.phrases import find_phrases
from casemate.guard.entities.places import find_places
from casemate.guard.entities.secrets import find_key_blocks, find_tokens
from casemate.guard.entities.window import Detector, Found, Window
from casemate.guard.entities.words import UNSPACED, word_set

Gate = Callable[[str, str], bool]
"""Told the segment, and the segment with the end of its context in lower case: can the detector find anything?"""

WITH_DIGITS: Final[tuple[Detector, ...]] = (find_cards, find_ibans, find_phones, find_numbers, find_dates, find_places)
WITH_LONG_RUN: Final[tuple[Detector, ...]] = (find_tokens, find_coins)


def _may_hold_key(segment: str, _near: str) -> bool:
    return "BEGIN" in segment or "PuTTY" in segment


def _may_hold_scheme(_segment: str, near: str) -> bool:
    return "://" in near or "www." in near


def _may_hold_mail(_segment: str, near: str) -> bool:
    return any(sign in near for sign in ("@", "at", "ar", "%40", "&"))


def _may_hold_host(segment: str, near: str) -> bool:
    return "." in segment or near.count(":") > 1 or near.count("-") > 1


def _may_hold_command(_segment: str, near: str) -> bool:
    return any(sign in near for sign in COMMAND_SIGNS)


def _may_assign(_segment: str, near: str) -> bool:
    return _OPERATOR.search(near) is not None


def _may_follow(_segment: str, near: str) -> bool:
    return _SAID_PLAINLY.search(near) is not None


def _may_hold_phrase(segment: str, _near: str) -> bool:
    return len(segment) > _SHORTEST_PHRASE


def _may_hold_name(segment: str, _near: str) -> bool:
    return segment.lower() != segment


def _may_hold_bank(_segment: str, near: str) -> bool:
    return "swift" in near or "bic" in near


GATED: Final[tuple[tuple[Gate, Detector], ...]] = (
    (_may_hold_key, find_key_blocks),
    (_may_hold_scheme, find_url_password),
    (_may_hold_scheme, find_urls),
    (_may_hold_mail, find_email),
    (_may_hold_host, find_network),
    (_may_hold_command, find_in_commands),
    (_may_assign, find_assigned),
    (_may_follow, find_adjacent),
    (_may_hold_phrase, find_phrases),
    (_may_hold_name, find_names),
    (_may_hold_bank, find_swift),
)
_SHORTEST_PHRASE: Final = 40
_LONG: Final = 13
_LONG_RUN = re.compile(rf"[A-Za-z0-9_\-+/=.~:%$]{{{_LONG}}}")
_PLAIN = re.compile(
    r"\s{0,4}[(*_]{0,2}[A-Za-z\u00c0-\u024f]{0,14}(?:'[A-Za-z]{1,3})?[.,;!?)*]{0,3}[:=]?\s{0,4}"
    rf"|\s{{0,4}}[{UNSPACED}]{{1,8}}\s{{0,4}}"
)
_SIGN = re.compile(r"\s{0,4}[^\w\s]{1,2}\s{0,4}")
_SMALL_NUMBER = re.compile(
    r"\s{0,4}[($+\-]?\d{1,3}(?:[.,:/\-]\d{1,2}|,\d{3})?[%)]?[.,;:!?]{0,2}\s{0,4}|\s{0,4}\d{4,5}[.,;!?]{0,2}\s{0,4}"
)
_NUMBER_WORDS: Final = (
    *(
        "zip",
        "post",
        "plz",
        "cap",
        "cep",
        "born",
        "birth",
        "dob",
        "bday",
        "geb",
        "n\u00e9",
        "naiss",
        "nac",
        "nat",
        "nas",
        "f\u00f8d",
    ),
    *(
        "f\u00f6d",
        "syn",
        "urod",
        "naroz",
        "\u0440\u043e\u0434",
        "\u0436\u0434",
        "lat",
        "lon",
        "lng",
        "gps",
        "coord",
        "geo",
        "pos",
    ),
    *("map", "pass", "medicare", "mbi"),
)
_NUMBER_REACH: Final = 72
_NEAR: Final = 32
_OPERATOR = re.compile(r"[:=>]|(?<![a-z])(?:is|was|are|lautet|ist|est|es|\u00e8)(?![a-z])")
_SAID_PLAINLY = re.compile(r"token|secret|pass|key|credential")
_ANNOUNCING_SIGNS: Final = frozenset(":=>\"'`(/#")
ANNOUNCING_WORDS: Final = word_set(
    """
    otp pin passcode cvv cvc cvv2 cvc2 tan
    is was are lautet ist est es \u00e8 basic bearer swift bic code number no by me regards sincerely cheers dear
    contact holder cardholder patient customer hei\u00dfe appelle llamo chiamo \u00e9 chamo-me heet heter \u00e4r
    si\u0119 on c/o attn mr mrs ms miss mx dr prof sir madam herr frau monsieur madame mme mlle se\u00f1or
    se\u00f1ora sra sr srta signor signora sig dott don do\u00f1a pan pani rev capt sgt lt col gen
    """
)
ANNOUNCING_ENDS: Final = (
    *("token", "tokens", "secret", "secrets", "password", "passwords", "passwd", "passwds", "passcode", "passcodes"),
    *("passphrase", "passphrases", "key", "keys", "credential", "credentials", "name's"),
)
_LAST_REACH: Final = 24
_NOT_LETTERS = re.compile(r"[\W\d_]")


def find_all(window: Window) -> list[Found]:
    """Return everything that the detectors find in *window*, unsettled."""
    found: list[Found] = []
    text, base = window.text, window.base
    segment = text[base:]
    near = text[max(0, base - _NEAR) :].lower()
    for gate, detector in GATED:
        if gate(segment, near):
            found.extend(detector(window))
    if window.digits:
        for detector in WITH_DIGITS:
            found.extend(detector(window))
    if len(segment) >= _LONG and _LONG_RUN.search(segment):
        for detector in WITH_LONG_RUN:
            found.extend(detector(window))
    return found


def is_idle(context: str, segment: str) -> bool:
    """Return whether no detector can find anything in *segment*.

    That holds for a plain word, a sign or a small number that nothing in *context* announces.
    """
    if _PLAIN.fullmatch(segment):
        return not announces(context)
    if _SMALL_NUMBER.fullmatch(segment):
        near = context[-_NUMBER_REACH:].lower()
        return near.isascii() and not announces(context) and not any(word in near for word in _NUMBER_WORDS)
    return _SIGN.fullmatch(segment) is not None


def announces(context: str) -> bool:
    """Return whether the last word of *context* says that a value follows."""
    end = context[-_LAST_REACH:].rstrip() or context.rstrip()
    if not end:
        return False
    if end[-1] in _ANNOUNCING_SIGNS:
        return True
    word = end[-_LAST_REACH:].rsplit(None, 1)[-1].lower()
    bare = word.strip(".,;:!?")
    if bare in ANNOUNCING_WORDS or bare.endswith(ANNOUNCING_ENDS) or word[0] == "-":
        return True
    return not bare.isalpha() and _NOT_LETTERS.split(bare)[-1] in ANNOUNCING_WORDS
