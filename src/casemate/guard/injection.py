"""How much a text tries to take over the model: a score from families of intent, per channel.

A family is a verb, an object and an addressee that stand together ("ignore" + "previous instructions"). One family in a
user's turn can be chance; in a document nobody is supposed to address the assistant at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from casemate.guard.verdict import Channel, Span

_GAP: Final = r"(?:\W+\w+){0,4}?\W+"
_FAMILIES: Final = {
    "override": (
        r"\b(?:ignore|disregard|forget|override|bypass|overrule|discard|neglect|ignorier\w*|vergiss|ignorez|oubli\w+|"
        rf"ignora\w*|olvid\w+|dimentica\w*|esque[cç]\w+)\b{_GAP}(?:instructions?|rules?|guidelines?|prompts?|directives?|"
        r"anweisung\w*|regeln|consignes|instruc\w+|istruzioni|everything|training)\b"
    ),
    "reveal": (
        r"\b(?:reveal|show|print|repeat|output|tell|display|leak|dump|disclose|recite)\b"
        rf"{_GAP}(?:(?:system|initial|hidden|original|secret)\W+(?:prompt|instructions?|message|rules)|instructions)\b"
    ),
    "persona": r"\b(?:do anything now|DAN mode|developer mode|jailbr[eo]ak\w*|unfiltered|uncensored|amoral)\b",
    "unbound": (
        rf"\b(?:without|no|free of|free from|not bound by|ignore){_GAP}?(?:restrictions?|limitations?|filters?|"
        r"ethic\w+|moral\w*|guidelines|policies|censorship)\b"
    ),
    "conceal": (
        r"\b(?:do not|don't|never|without) (?:tell|mention|inform|alert|notify)\w*\W+"
        r"(?:the|this to the)? ?(?:user|human)\b"
    ),
    "address": (
        r"\b(?:dear|attention|hey|note to|instructions? (?:for|to)) (?:the )?"
        r"(?:ai|llm|chatbot|assistant|language model)\b"
    ),
}
_COMPILED: Final = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _FAMILIES.items()}
_WEIGHTS: Final = {"override": 0.5, "reveal": 0.35, "persona": 0.35, "unbound": 0.25, "conceal": 0.35, "address": 0.35}
_UNTRUSTED: Final = frozenset({Channel.DOCUMENT, Channel.TOOL})
_SPANS_PER_FAMILY: Final = 4


@dataclass(frozen=True, slots=True)
class Injection:
    """A score (>= 0.5 means block), the families that made it, and where they stand in the text that was given."""

    score: float
    reasons: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()


def score_injection(text: str, channel: Channel) -> Injection:
    """Judge the normalised *text* as it stands on *channel*."""
    total = 0.0
    spans: list[Span] = []
    for name, pattern in _COMPILED.items():
        matches = [m for m, _ in zip(pattern.finditer(text), range(_SPANS_PER_FAMILY), strict=False)]
        if matches:
            total += _WEIGHTS[name] * (1.5 if channel in _UNTRUSTED else 1.0)
            spans += [Span(*match.span(), f"injection:{name}") for match in matches]
    reasons = tuple(dict.fromkeys(span.type for span in spans))
    return Injection(min(total, 0.99), reasons, tuple(spans))
