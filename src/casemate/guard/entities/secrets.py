"""Credentials by their own form: private keys, tokens with a known beginning, private keys of wallets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities import pem
from casemate.guard.entities.coins import base58check
from casemate.guard.entities.randomness import is_dummy, is_words
from casemate.guard.entities.tokens import TOKENS, Token
from casemate.guard.entities.window import Found, Window

_WIF = re.compile(r"(?<![A-Za-z0-9])(?:5[HJK][1-9A-HJ-NP-Za-km-z]{49}|[KLc][1-9A-HJ-NP-Za-km-z]{51})(?![A-Za-z0-9])")
_WIF_VERSIONS: Final = (0x80, 0xEF)
# A beginning this long is proof by itself; after a shorter one the rest must not read like words.
_TELLING: Final = 5


class _Node:
    """A letter of the beginnings: the letters after it, and the tokens whose beginning ends here."""

    def __init__(self) -> None:
        self.after: dict[str, _Node] = {}
        self.tokens: list[Token] = []


def _compile_beginnings() -> tuple[re.Pattern[str], tuple[Token, ...]]:
    """Return one pattern for all tokens with a beginning, longest beginning first, and the token of each group."""
    root = _Node()
    for token in TOKENS:
        for start in token.start.split("|") if token.start else ():
            node = root
            for letter in start:
                node = node.after.setdefault(letter, _Node())
            node.tokens.append(token)
    order: list[Token] = []
    pattern = _alternatives(root, order)
    return re.compile(f"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])", re.ASCII), tuple(order)


def _alternatives(node: _Node, order: list[Token]) -> str:
    parts = [f"{re.escape(letter)}(?:{_alternatives(after, order)})" for letter, after in node.after.items()]
    for token in node.tokens:
        parts.append(f"({token.rest})")
        order.append(token)
    return "|".join(parts)


_BEGINNINGS, _TOKEN_OF_GROUP = _compile_beginnings()
_SHAPES: Final = tuple(
    (token, re.compile(f"(?<![A-Za-z0-9])(?:{token.rest})(?![A-Za-z0-9])", re.ASCII))
    for token in TOKENS
    if not token.start
)


def find_tokens(window: Window) -> Iterator[Found]:
    """Find tokens that say by their beginning or their form what they are."""
    for match in window.matches(_BEGINNINGS):
        token = _TOKEN_OF_GROUP[(match.lastindex or 1) - 1]
        if _plausible(token, match[0]):
            yield Found(*match.span(), f"secret:{token.kind}")
    segment = window.text[window.base :]
    for token, pattern in _SHAPES:
        if token.sign in segment:
            for match in window.matches(pattern):
                if _plausible(token, match[0]):
                    yield Found(*match.span(), f"secret:{token.kind}")
    for match in window.matches(_WIF):
        data = base58check(match[0])
        if data is not None and data[0] in _WIF_VERSIONS:
            yield Found(*match.span(), "secret:bitcoin-private-key")


def find_key_blocks(window: Window) -> Iterator[Found]:
    """Find the private-key block of this segment (segments end where a block ends)."""
    header = pem.find_header(window.text, window.base, len(window.text))
    if header is not None:
        end = pem.block_end(window.text, header, final=True)
        if end >= 0:
            yield Found(header.start(), end, "secret:private-key")


def _plausible(token: Token, value: str) -> bool:
    if is_dummy(value):
        return False
    if not token.start:
        return True
    start = next((start for start in token.start.split("|") if value.startswith(start)), "")
    return len(start) >= _TELLING or not is_words(value[len(start) :])
