"""Tells a string that a machine made to be secret from a word, a name, a placeholder, a piece of code."""

from __future__ import annotations

import re
from typing import Final

from casemate.guard.entities.checks import entropy

_DUMMY = re.compile(
    r"example|sample|dummy|changeme|change_me|placeholder|redacted|replace|insert|your[_\-]|_here|xxxx|\*\*\*|\.\.\.|todo|"
    r"0123456789|1234567890|abcdefgh|deadbeef|qwerty|lorem|foobar|notreal|fake",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"[(){}<>\[\]]|\$\w|\A%\w+%\Z|\A[A-Za-z_]+(?:\.[A-Za-z_]+)+\Z|\A@?[A-Za-z_]+(?:::[A-Za-z_]+)+\Z|\A/(?:[\w.\-]+/)+"
)
_PARTS = re.compile(r"[\-_./:=+~@]+")
_TURN = re.compile(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])|(?<=[a-z])(?=[A-Z])")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_HEX = re.compile(r"[0-9a-f]{16,}|[0-9A-F]{16,}")
_WORDS = re.compile(r"[a-z]{1,14}|[A-Z]{1,14}|[A-Z][a-z]{1,13}|\d{1,4}|v\d{1,3}")
_CONSONANTS = re.compile(
    r"[bcdfghjklmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ]{6}|[bcdfghjklmnpqrstvwxz]*[jqxz][bcdfghjklmnpqrtvwxz]{2}"
)
_LETTERS_LEAST: Final = 16
_MIN_DISTINCT: Final = 6


def is_dummy(text: str) -> bool:
    """Return whether *text* stands for a secret in documentation: `your-key-here`, `xxxx`, `EXAMPLE`."""
    return bool(_DUMMY.search(text)) or len(set(text)) < min(_MIN_DISTINCT, len(text) // 2)


def is_code(text: str) -> bool:
    """Return whether *text* is an expression, a variable or a path rather than a value."""
    return bool(_CODE.search(text))


def is_uuid(text: str) -> bool:
    """Return whether *text* is a UUID: random, but usually a name and no secret."""
    return bool(_UUID.fullmatch(text))


def is_words(text: str) -> bool:
    """Return whether *text* consists of words and small numbers joined by punctuation."""
    return all(_WORDS.fullmatch(part) for part in _PARTS.split(text) if part)


def looks_random(text: str, least: int) -> bool:
    """Return whether *text* has at least *least* characters and no structure that a person gave it."""
    if len(text) < least or is_dummy(text) or is_words(text):
        return False
    if _HEX.fullmatch(text):
        return entropy(text) >= 2.8  # noqa: PLR2004 - sixteen random hex digits have 3.2 on average
    digits = sum(c.isdigit() for c in text)
    if digits == len(text):
        return False
    turns = len(_TURN.findall(text))
    if digits and turns >= 2:  # noqa: PLR2004 - one turn is a word with a number
        return entropy(text) >= min(3.0, 0.18 * len(text))
    if turns >= 3:  # noqa: PLR2004 - mixed case without digits
        return entropy(text) >= 3.0  # noqa: PLR2004 - the same
    return len(text) >= _LETTERS_LEAST and _CONSONANTS.search(text) is not None and entropy(text) >= 3.0  # noqa: PLR2004
