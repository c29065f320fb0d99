"""Letters of other scripts that a reader takes for Latin ones, and letters written upside down.

Only for words that mix scripts: a Russian or Greek word on its own is what it looks like.
"""

from __future__ import annotations

import re
from typing import Final

_PAIRS: Final = (
    # Cyrillic
    "\u0430a \u0432b \u0441c \u0501d \u0435e \u0493f \u050dg \u04bbh \u043dh \u0456i \u0458j \u043ak \u04cfl \u043cm "
    "\u043fn \u043eo \u0440p \u051bq \u0433r \u0455s \u0442t \u0446u \u0475v \u0461w \u0448w \u051dw \u0445x \u0443y "
    "\u0454e \u044cb \u0457i \u044f\u0072 \u0438n "
    # Greek
    "\u03b1a \u03b2b \u03f2c \u03b4d \u03b5e \u03b7n \u03b9i \u03bak \u03bbl \u03bcu \u03bdv \u03bfo \u03c0n \u03c1p "
    "\u03c2s \u03c3s \u03c4t \u03c5u \u03c7x \u03b3y \u03c9w \u03b6z \u03b8o \u03f3j "
    # Armenian, Latin extensions
    "\u0585o \u057du \u0570h \u0578n \u0581g \u0575j \u0566q \u0251a \u0261g \u0269i \u028bv \u0268i \u026al \u0274n "
    "\u01c0l \u0299b \u1d04c \u1d07e"
)
_TABLE: Final = {ord(pair[0]): pair[1] for pair in _PAIRS.split()}
_CAPITALS: Final = (
    "\u0410A \u0412B \u0421C \u0415E \u041dH \u0406I \u0408J \u041aK \u041cM \u041eO \u0420P \u0405S \u0422T "
    "\u0425X \u0423Y \u0391A \u0392B \u0395E \u0396Z \u0397H \u0399I \u039aK \u039cM \u039dN \u039fO \u03a1P "
    "\u03a4T \u03a5Y \u03a7X \u03f9C"
)
_TABLE.update({ord(pair[0]): pair[1] for pair in _CAPITALS.split()})
_LETTERS: Final = "".join(map(chr, _TABLE))
LOOKALIKES: Final = frozenset(_LETTERS)
_MIXED = re.compile(f"[A-Za-z][{_LETTERS}]|[{_LETTERS}][A-Za-z]")

_TURNED_LETTERS: Final = (
    "\u0250q\u0254p\u01dd\u025f\u0183\u0265\u1d09\u027e\u029el\u026fuodb\u0279s\u0287n\u028c\u028dx\u028ez"
)
_TURNED: Final = str.maketrans(_TURNED_LETTERS, "abcdefghijklmnopqrstuvwxyz")
TURNED: Final = frozenset("\u0250\u0254\u01dd\u025f\u0183\u0265\u1d09\u027e\u029e\u026f\u0279\u0287\u028c\u028d\u028e")
_ENOUGH_TURNED: Final = 4


def plain_letters(text: str) -> str | None:
    """Return *text* with look-alikes as the Latin letters they pose as, None when no word mixes scripts."""
    return text.translate(_TABLE) if _MIXED.search(text) else None


def turned_over(text: str) -> str | None:
    """Return *text* turned the right way up, None when it is not upside down."""
    if sum(map(text.count, TURNED)) < _ENOUGH_TURNED:
        return None
    return text.translate(_TURNED)[::-1]
