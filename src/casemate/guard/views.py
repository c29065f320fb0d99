"""The texts behind a text: at most eight decoded views, at most two disguises deep, within a budget of characters.

Decoding is no finding by itself (harmless base64 is common): every view is judged like the text it came from. Plain
prose has none of the signs that start a decoder and costs next to nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Final

from casemate.guard import decoders
from casemate.guard.grammar import Lexicon
from casemate.guard.lookalikes import LOOKALIKES, TURNED, plain_letters, turned_over
from casemate.guard.normalize import normalize
from casemate.guard.sentences import Reading, read_text
from casemate.guard.spelling import Spelling

VIEWS: Final = 8
LEVELS: Final = 2
CHARACTERS: Final = 400_000  # of all views together, beside four times the text
RUN: Final = 14
FEW: Final = 2
MANY: Final = 10
SINGLES: Final = 4
SINGLE_SHARE: Final = 0.15
CODES: Final = 4
PAIR: Final = 2
CODE_RUN: Final = 6
CODE_LENGTHS: Final = frozenset({2, 3, 8})
LONG_RUN: Final = 24
LONG_TEXT: Final = 60_000
PIG_SHARE: Final = 0.5

_TAGS = re.compile("[\U000e0020-\U000e007e]{2,}")
_SELECTOR_RUN = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")


@dataclass(frozen=True, slots=True)
class View:
    """A decoded text as it reads, and the names of the disguises that were undone, outermost first."""

    reading: Reading
    names: tuple[str, ...]


def hidden_text(original: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of what characters nobody can see spell: tag characters, bytes in variation selectors."""
    if original.isascii():
        return
    tagged = "".join(chr(ord(c) - 0xE0000) for run in _TAGS.findall(original) for c in run)
    if tagged:
        yield "tags", tagged
    for run in _SELECTOR_RUN.findall(original)[:FEW]:
        hidden = bytes(ord(c) - 0xFE00 if c <= "\ufe0f" else ord(c) - 0xE0100 + 16 for c in run)
        yield "selectors", hidden.decode("utf-8", "replace")


class Unmasking:
    """Finds the views of a text."""

    def __init__(self, lexicon: Lexicon, ordinary: Iterable[str] = ()) -> None:
        """Recognise the words of *lexicon* in disguise; *ordinary* words are never misspellings."""
        self._lexicon = lexicon
        self._spelling = spelling = Spelling(lexicon, frozenset(ordinary))
        self._decoders: tuple[tuple[str, Callable[[str, _Signs], str | None]], ...] = (
            ("lookalikes", lambda text, signs: plain_letters(text) if signs.lookalikes else None),
            ("upside-down", lambda text, signs: turned_over(text) if signs.turned else None),
            ("escapes", lambda text, signs: decoders.escapes(text) if signs.escaped else None),
            ("base64", lambda text, signs: decoders.base64_runs(text) if signs.runs else None),
            ("hex", lambda text, signs: decoders.hex_runs(text) if signs.hexadecimal else None),
            ("base32", lambda text, signs: decoders.base32_runs(text) if signs.runs else None),
            ("numbers", lambda text, signs: decoders.number_runs(text) if signs.numbers else None),
            ("spacing", lambda text, signs: decoders.unspaced(text, spelling.segment) if signs.single else None),
            ("dots", lambda text, signs: decoders.undotted(text) if signs.single else None),
            ("leet", lambda text, signs: decoders.leet(text, spelling.known) if signs.leet else None),
            ("rot13", lambda text, signs: decoders.rot13(text) if signs.rot13 else None),
            ("reversal", lambda text, signs: decoders.backwards(text) if signs.backwards else None),
            ("morse", lambda text, signs: decoders.morse(text) if signs.strokes else None),
            ("literals", lambda text, signs: decoders.literals(text) if signs.quoted else None),
            ("pig-latin", lambda _, signs: decoders.pig_latin(signs.tokens, spelling.known) if signs.pig else None),
            ("spelling", lambda _, signs: _corrected(signs)),
        )

    def views(self, reading: Reading, original: str) -> Iterator[View]:
        """Yield the decoded views of a text; *original* is how it came, with what it hides."""
        first = [View(read_text(normalize(text).text, self._lexicon), (name,)) for name, text in hidden_text(original)]
        yield from first
        seen = {reading.text, *(view.reading.text for view in first)}
        count, left = len(first), CHARACTERS + 4 * len(reading.text)
        queue = [View(reading, ()), *first]
        while queue and count < VIEWS:
            parent = queue.pop(0)
            for name, text in self._decode(parent):
                left -= len(text)
                if text in seen or left < 0:
                    continue
                seen.add(text)
                child = View(read_text(text, self._lexicon), (*parent.names, name))
                yield child
                count += 1
                if count >= VIEWS:
                    return
                if len(child.names) < LEVELS:
                    queue.append(child)

    def _decode(self, parent: View) -> Iterator[tuple[str, str]]:
        signs = _Signs(parent.reading, self._spelling)
        for name, decode in self._decoders:
            if name in parent.names and name != "base64":
                continue
            plain = decode(parent.reading.text, signs)
            if plain is not None and plain.strip():
                yield name, normalize(plain).text


class _Signs:
    """Cheap hints, from the tokens that mean nothing as they stand, about which decoders are worth running."""

    def __init__(self, reading: Reading, spelling: Spelling) -> None:
        text, self.tokens = reading.text, reading.tokens
        unknown = {token for token, entry in zip(self.tokens, reading.entries, strict=True) if entry is None}
        odd = [token for token in unknown if not token.isalpha()]
        characters = frozenset() if text.isascii() else frozenset(text)
        self.lookalikes = not LOOKALIKES.isdisjoint(characters)
        self.turned = not TURNED.isdisjoint(characters)
        self.single = self._written_apart({token for token in unknown if len(token) == 1 and token.isalpha()})
        self.escaped = "%" in text or "&" in text or "\\" in text or "<" in text
        self.strokes = not unknown or text.count("-") + text.count(".") > len(text) // 4
        self.quoted = "=" in text and ('"' in text or "'" in text)
        self.rot13 = _many(spelling.count_rot13(unknown), unknown)
        self.backwards = _many(spelling.count_backwards(unknown), unknown)
        self.pig = text.count("ay") > PIG_SHARE * max(len(self.tokens), 2 * FEW)
        self.runs = any(len(token) >= RUN for token in odd) or any(len(token) >= LONG_RUN for token in unknown)
        self.hexadecimal = self.runs or sum(len(token) == PAIR and not token.isdigit() for token in odd) >= FEW
        self.numbers = sum(map(str.isdigit, odd)) >= CODES and _longest_run(self.tokens) >= CODE_RUN
        self.leet = sum(map(spelling.is_leet, odd)) + text.count("@") + text.count("$") >= FEW
        self.corrections = {} if len(text) > LONG_TEXT else spelling.corrections(unknown)

    def _written_apart(self, letters: set[str]) -> bool:
        """Return whether many tokens are single letters."""
        if len(letters) < SINGLES:
            return False
        return sum(len(token) == 1 and token.isalpha() for token in self.tokens) >= SINGLE_SHARE * len(self.tokens)


def _many(found: int, words: Sized) -> bool:
    """Return whether *found* of *words* are too many for chance."""
    return found >= FEW and found * MANY >= len(words)


def _longest_run(tokens: Sequence[str]) -> int:
    """Return how many numbers of two, three or eight digits follow each other at most."""
    longest = run = 0
    for token in tokens:
        run = run + 1 if len(token) in CODE_LENGTHS and token.isdigit() else 0
        longest = max(longest, run)
    return longest


def _corrected(signs: _Signs) -> str | None:
    """Return the text with misspelt telling words put right, if there are any."""
    return " ".join(signs.corrections.get(token, token) for token in signs.tokens) if signs.corrections else None
