"""Why a text got its verdict: the sentences that decided, what in them counted, and the disguises that were undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from casemate.guard.classes import feature_name
from casemate.guard.injection import Injection, InjectionJudge
from casemate.guard.sentences import Reading
from casemate.guard.verdict import Channel

SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Explanation:
    """One reading of a text and its judgement: *words* are those of the deciding sentences, with their classes."""

    names: tuple[str, ...]
    text: str
    injection: Injection
    value: float
    flag: float
    block: float
    words: str
    weights: tuple[tuple[str, float], ...]


def explain(judge: InjectionJudge, reading: Reading, channel: Channel, names: tuple[str, ...]) -> Explanation:
    """Return why *reading* (of a view with these *names*) gets its score on *channel*."""
    model = judge.model_for(channel)
    sentences, scored = judge.best_window(reading, channel)
    words, weights = "", []
    if scored.window is not None:
        first, last = sentences[scored.window.first].first, sentences[scored.window.end - 1].last
        words = " ".join(reading.tokens[first:last])
        weights = model.contributions(scored.window)
    strongest = sorted(weights, key=lambda pair: -abs(pair[1]))[:SHOWN]
    return Explanation(
        names,
        reading.text,
        judge.judge(reading, channel),
        scored.value,
        model.flag,
        model.block,
        words,
        tuple((feature_name(number), weight) for number, weight in strongest),
    )
