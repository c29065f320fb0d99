"""What an answer must never contain: the canary of its system prompt, in any usual spelling, or the prompt itself.

The canary is compared without case, spaces and punctuation, forwards and backwards, and in base64 (every alignment),
base32, hex and rot13: a run of `GRAM` characters of any of these is a leak. The system prompt is compared twice: by
runs of its words, which finds a copy, and by how many of its telling words come up near each other, which finds most
retellings. A prompt of a few common words has nothing to hide and is not compared.
"""

from __future__ import annotations

import base64
import codecs
import re
from dataclasses import dataclass, field
from typing import Final

GRAM: Final = 10
MIN_DIGITS: Final = 2
SHINGLE: Final = 4
RUN_TO_STOP: Final = 12
LEAST_WORDS: Final = 8
TELLING_LENGTH: Final = 5
NEAR: Final = 3
LEAST_PAIRS: Final = 8
SHARE_TO_STOP: Final = 0.4
_NOT_ALNUM = re.compile(r"[^a-z0-9]+")
_WORD = re.compile(r"[^\W_]+")

Pair = tuple[str, str]


@dataclass(frozen=True)
class OutputWatch:
    """The canaries and the system prompt of one conversation."""

    canaries: tuple[str, ...] = ()
    system_prompt: str = ""
    grams: frozenset[str] = field(init=False, repr=False, default=frozenset())
    shingles: frozenset[tuple[str, ...]] = field(init=False, repr=False, default=frozenset())
    pairs: frozenset[Pair] = field(init=False, repr=False, default=frozenset())
    run_to_stop: int = field(init=False, repr=False, default=RUN_TO_STOP)

    def __post_init__(self) -> None:
        grams = frozenset(gram for canary in self.canaries for form in spellings(canary) for gram in _grams(form))
        object.__setattr__(self, "grams", grams)
        words = _WORD.findall(self.system_prompt.lower())
        if len(words) < LEAST_WORDS:
            return
        shingles = frozenset(tuple(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1))
        telling = [word for word in words if len(word) >= TELLING_LENGTH]
        pairs = frozenset(pair for at in range(len(telling)) for pair in _pairs(telling[max(0, at - NEAR) : at + 1]))
        object.__setattr__(self, "shingles", shingles)
        object.__setattr__(self, "pairs", pairs)
        object.__setattr__(self, "run_to_stop", max(LEAST_WORDS, min(RUN_TO_STOP, len(words))))

    def begin(self) -> Lookout:
        """Return the state that watches one stream."""
        return Lookout(self)


class Lookout:
    """Watches one stream, segment by segment, before each leaves."""

    def __init__(self, watch: OutputWatch) -> None:
        self._watch = watch
        self._squeezed = ""
        self._words: list[str] = []
        self._run = 0
        self._telling: list[str] = []
        self._met: set[Pair] = set()

    def look(self, text: str) -> str | None:
        """Return why *text*, the next segment of the stream, must not leave: `canary`, `system-overlap` or None."""
        if self._watch.grams and self._leaks_canary(text):
            return "canary"
        if self._watch.shingles and self._repeats_prompt(text):
            return "system-overlap"
        return None

    def _leaks_canary(self, text: str) -> bool:
        fresh = _NOT_ALNUM.sub("", text.lower())
        if not fresh:
            return False
        joined = self._squeezed + fresh
        self._squeezed = joined[-(GRAM - 1) :]
        grams = self._watch.grams
        return any(joined[at : at + GRAM] in grams for at in range(len(joined) - GRAM + 1))

    def _repeats_prompt(self, text: str) -> bool:
        return any(self._copies(word) or self._retells(word) for word in _WORD.findall(text.lower()))

    def _copies(self, word: str) -> bool:
        """Take the next word; return whether it ends a long run of the prompt's own words."""
        self._words.append(word)
        del self._words[:-SHINGLE]
        if len(self._words) < SHINGLE or tuple(self._words) not in self._watch.shingles:
            self._run = 0
            return False
        self._run = self._run + 1 if self._run else SHINGLE
        return self._run >= self._watch.run_to_stop

    def _retells(self, word: str) -> bool:
        """Take the next word; return whether most of what the prompt says has now come up, near each other as there."""
        if len(word) < TELLING_LENGTH:
            return False
        self._telling.append(word)
        del self._telling[: -NEAR - 1]
        self._met.update(pair for pair in _pairs(self._telling) if pair in self._watch.pairs)
        return len(self._met) >= max(LEAST_PAIRS, SHARE_TO_STOP * len(self._watch.pairs))


def spellings(canary: str) -> list[str]:
    """Return the forms of *canary* that a leak may take, squeezed to lower-case letters and digits."""
    data = canary.encode(errors="surrogatepass")
    forms = [canary, codecs.encode(canary, "rot13"), data.hex(), base64.b32encode(data).decode()]
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + data).decode().rstrip("=")
        forms.append(encoded[(0, 2, 3)[shift] : -1])
    squeezed = [_NOT_ALNUM.sub("", form.lower()) for form in forms]
    return squeezed + [form[::-1] for form in squeezed]


def _grams(form: str) -> list[str]:
    """Return the runs of *form* that are telling: with digits, because plain words also occur in plain text."""
    every = [form[at : at + GRAM] for at in range(len(form) - GRAM + 1)]
    telling = [gram for gram in every if sum(c.isdigit() for c in gram) >= MIN_DIGITS]
    return telling or every


def _pairs(words: list[str]) -> list[Pair]:
    """Return the last of *words* with each one before it, in either order the same."""
    last = words[-1]
    return [(min(word, last), max(word, last)) for word in words[:-1] if word != last]
