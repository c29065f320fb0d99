"""How much a text tries to take over the model: words to sentences to features to one score, per channel.

A plain request is normal in a user's turn and an attack inside a document, so documents and tool results have weights
and a threshold of their own. What the operator wrote (system) and what the model wrote (output) is scored, for the
journal, and never blocked for its words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from casemate.guard.features import find_facts
from casemate.guard.grammar import Lexicon
from casemate.guard.model import LinearModel, Scored, families
from casemate.guard.sentences import Reading, Sentence, cut_sentences, read_text
from casemate.guard.verdict import Channel, Span
from casemate.guard.words import fold, word_spans

BLOCK_AT: Final = 0.5
FLAG_AT: Final = 0.3
HIGHEST: Final = 0.9999
BELOW_BLOCK: Final = 0.4999
REASONS: Final = 3
SHARE: Final = 0.12
UNTRUSTED: Final = frozenset({Channel.DOCUMENT, Channel.TOOL})
OWN_WORDS: Final = frozenset({Channel.SYSTEM, Channel.OUTPUT})


@dataclass(frozen=True, slots=True)
class Injection:
    """A score (>= 0.5 means block), the families that made it, and where they stand in the text that was given."""

    score: float
    reasons: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()


NOTHING: Final = Injection(0.0)


class InjectionJudge:
    """Scores normalised texts with one lexicon and the models of both kinds of channel."""

    def __init__(self, lexicon: Lexicon, models: dict[str, LinearModel], ordinary: frozenset[str]) -> None:
        """Keep the parts; `models` has `user` and `document`; *ordinary* words are never misspellings."""
        self.lexicon = lexicon
        self.ordinary = ordinary
        self._models = models

    def model_for(self, channel: Channel) -> LinearModel:
        """Return the model that judges *channel*."""
        return self._models["document" if channel in UNTRUSTED else "user"]

    def read(self, text: str) -> Reading:
        """Return the reading of the normalised *text*."""
        return read_text(text, self.lexicon)

    def best_window(self, reading: Reading, channel: Channel) -> tuple[list[Sentence], Scored]:
        """Return the sentences of a text and its most telling window."""
        sentences = cut_sentences(reading.entries)
        model = self.model_for(channel)
        return sentences, model.score(find_facts(sentences, model.wanted))

    def judge(self, reading: Reading, channel: Channel) -> Injection:
        """Return the verdict on a text; spans are in that text."""
        sentences, scored = self.best_window(reading, channel)
        model = self.model_for(channel)
        score = _calibrate(scored.value, model)
        if channel in OWN_WORDS:
            score = min(score, BELOW_BLOCK)
        if score < FLAG_AT or scored.window is None:
            return Injection(score)
        found = families(model.contributions(scored.window))
        reasons = tuple(f"injection:{name}" for name, share in found[:REASONS] if share >= SHARE)
        if not reasons:
            return Injection(score)
        place = self._place(reading.text, sentences[scored.window.first].first, sentences[scored.window.end - 1].last)
        return Injection(score, reasons, (Span(*place, reasons[0]),))

    def _place(self, text: str, first: int, last: int) -> tuple[int, int]:
        """Return the characters of *text* behind its tokens *first* to *last* (exclusive)."""
        folded = fold(text)
        index, begin, end = 0, len(text), len(text)
        for start, stop in word_spans(folded):
            word = folded[start:stop]
            index += 1 if word.isascii() else len(self.lexicon.separate(word, [word]))
            if index > first:
                begin = min(begin, start)
            if index >= last:
                end = stop
                break
        return begin, end


def _calibrate(value: float, model: LinearModel) -> float:
    """Return a score between 0 and 1: FLAG_AT at the model's flag threshold, BLOCK_AT exactly from its block one."""
    distance = value - model.block
    if distance >= 0:
        return max(BLOCK_AT, min(HIGHEST, _sigmoid(distance)))
    width = max(model.block - model.flag, 1e-6)
    return min(BELOW_BLOCK, _sigmoid(distance / width * math.log((1 - FLAG_AT) / FLAG_AT)))


def _sigmoid(value: float) -> float:
    return math.floor(10_000 / (1 + math.exp(-max(-30.0, min(30.0, value))))) / 10_000


Check = Callable[[], None]
"""Called between steps; raises when the budget is spent."""
