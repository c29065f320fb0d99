"""What an answer must never contain: the canary of its system prompt, in any usual spelling, or the prompt itself.

The canary is compared without case, spaces and punctuation, forwards and backwards, and in base64 (every alignment),
base32, hex and rot13: a run of `GRAM` characters of any of these is a leak. The system prompt is compared by runs of
words, so that a copied passage counts and a shared phrase does not.
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
_NOT_ALNUM = re.compile(r"[^a-z0-9]+")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class OutputWatch:
    """The canaries and the system prompt of one conversation."""

    canaries: tuple[str, ...] = ()
    system_prompt: str = ""
    grams: frozenset[str] = field(init=False, repr=False, default=frozenset())
    shingles: frozenset[tuple[str, ...]] = field(init=False, repr=False, default=frozenset())
    run_to_stop: int = field(init=False, repr=False, default=RUN_TO_STOP)

    def __post_init__(self) -> None:
        grams = frozenset(gram for canary in self.canaries for form in spellings(canary) for gram in _grams(form))
        words = _WORD.findall(self.system_prompt.lower())
        shingles = frozenset(tuple(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1))
        object.__setattr__(self, "grams", grams)
        object.__setattr__(self, "shingles", shingles)
        object.__setattr__(self, "run_to_stop", max(SHINGLE, min(RUN_TO_STOP, len(words))))

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
        for word in _WORD.findall(text.lower()):
            self._words.append(word)
            del self._words[:-SHINGLE]
            if len(self._words) < SHINGLE or tuple(self._words) not in self._watch.shingles:
                self._run = 0
                continue
            self._run = self._run + 1 if self._run else SHINGLE
            if self._run >= self._watch.run_to_stop:
                return True
        return False


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
