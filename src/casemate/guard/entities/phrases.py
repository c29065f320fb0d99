"""Recovery phrases of wallets: twelve or more words of the BIP-39 list after a word that says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.bip39_words import INDEX
from casemate.guard.entities.window import Found, Window

SHORTEST: Final = 12
_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{3,8}(?![A-Za-z])")
_BETWEEN = re.compile(r"[\s,;|\-\"']{1,3}(?:\(?\d{1,2}[.):]?[ ]?){0,1}")
_SAYS: Final = (
    *(
        "seed",
        "mnemonic",
        "recovery",
        "phrase",
        "wallet",
        "backup",
        "bip39",
        "bip-39",
        "secret words",
        "12 words",
        "24 words",
    ),
)
_SAID_REACH: Final = 160


def said(text: str) -> bool:
    """Return whether *text* speaks of a recovery phrase."""
    lower = text.lower()
    return any(word in lower for word in _SAYS)


def find_phrases(window: Window) -> Iterator[Found]:
    """Find recovery phrases."""
    text, base = window.text, window.base
    if text.count(" ", base) + text.count("\n", base) + text.count(",", base) < SHORTEST - 1:
        return
    run: list[re.Match[str]] = []
    for match in _WORD.finditer(text, base):
        if match[0].lower() not in INDEX:
            yield from _decide(text, run)
            run = []
        elif run and not _BETWEEN.fullmatch(text, run[-1].end(), match.start()):
            yield from _decide(text, run)
            run = [match]
        else:
            run.append(match)
    yield from _decide(text, run)


def _decide(text: str, run: list[re.Match[str]]) -> Iterator[Found]:
    if len(run) < SHORTEST:
        return
    if said(text[max(0, run[0].start() - _SAID_REACH) : run[0].start()]):
        yield Found(run[0].start(), run[-1].end(), "secret:bip39")
