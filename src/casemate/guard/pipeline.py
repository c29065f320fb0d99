"""The guard as the gateway calls it: text and channel in, a verdict out; it never raises for any text.

The order is fixed: limits, normalisation and hidden channels, role confusion, injection, then entities. A fault or a
spent budget inside is a `block`, because a guard that fails open is no guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

from casemate.guard.documents import Document, wrap_documents
from casemate.guard.injection import Injection, score_injection
from casemate.guard.normalize import BLOCKING, Normal, normalize
from casemate.guard.roles import find_roles
from casemate.guard.verdict import Action, Channel, GuardPolicy, OverBudget, Span, Verdict, never_over

BLOCK_AT: Final = 0.5
CERTAIN: Final = 0.99
DOUBT: Final = 0.3
MAX_SPANS: Final = 64
_UNTRUSTED: Final = frozenset({Channel.DOCUMENT, Channel.TOOL})


class Guard:
    """Judges texts under a policy. Immutable and shared: one per process."""

    @classmethod
    def default(cls) -> Self:
        """Return a guard with the rules and weights that ship with this version."""
        return cls()

    def check(self, text: str, channel: Channel, policy: GuardPolicy, over_budget: OverBudget = never_over) -> Verdict:
        """Decide about *text* on *channel*. Every fault, oversize or spent budget is a `block`."""
        try:
            return self._check(text, channel, policy, over_budget)
        except Exception:  # noqa: BLE001 - whatever breaks inside, the answer is a refusal
            return Verdict(Action.BLOCK, 1.0, ("guard-error",))

    def wrap_documents(self, documents: Sequence[Document], marker: str) -> str:
        """Return *documents* delimited and datamarked with the caller's random *marker*."""
        return wrap_documents(documents, marker)

    def _check(self, text: str, channel: Channel, policy: GuardPolicy, over_budget: OverBudget) -> Verdict:
        if len(text) > policy.max_chars:
            return Verdict(Action.BLOCK, 1.0, ("over-size",))
        normal = normalize(text)
        if over_budget():
            return Verdict(Action.BLOCK, 1.0, ("over-budget",))
        injection = _judge(normal, channel)
        if over_budget():
            return Verdict(Action.BLOCK, 1.0, ("over-budget",))
        return _decide(injection, channel, policy)


def _judge(normal: Normal, channel: Channel) -> Injection:
    """Combine hidden channels, control tokens and intent into one score with spans of the original text."""
    roles = () if channel is Channel.SYSTEM else find_roles(normal.text)
    intent = score_injection(normal.text, channel)
    inside = [Span(*normal.span(span.start, span.end), span.type) for span in (*roles, *intent.spans)]
    spans = (*normal.hidden, *inside)
    score = intent.score
    if any(span.type in BLOCKING or span.type == "role:open" for span in spans):
        score = max(score, CERTAIN)
    elif normal.hidden or roles:
        score = max(score, DOUBT)
    reasons = tuple(dict.fromkeys((*(span.type for span in (*normal.hidden, *roles)), *intent.reasons)))
    return Injection(round(score, 4), reasons, spans[:MAX_SPANS])


def _decide(found: Injection, channel: Channel, policy: GuardPolicy) -> Verdict:
    """Turn a score into the action the policy wants for this channel."""
    if found.score < BLOCK_AT:
        action = Action.FLAG if found.reasons and found.score >= DOUBT else Action.ALLOW
        return Verdict(action, found.score, found.reasons, found.spans)
    hidden = any(reason in BLOCKING for reason in found.reasons)
    intent = policy.document_injection if channel in _UNTRUSTED else policy.injection
    action = policy.hidden_text if hidden else intent
    return Verdict(action, found.score, found.reasons, found.spans)
