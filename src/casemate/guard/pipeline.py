"""The guard as the gateway calls it: text and channel in, a verdict out; it never raises for any text.

The order is fixed: limits, normalisation and hidden channels, role confusion, injection, then entities. A fault or a
spent budget inside is a `block`, because a guard that fails open is no guard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final, Self

from casemate.guard.bundle import GuardData, read_bundle, shipped_bundle
from casemate.guard.documents import Document, wrap_documents
from casemate.guard.injection import BLOCK_AT, FLAG_AT, UNTRUSTED, Injection, InjectionJudge
from casemate.guard.normalize import BLOCKING, Normal, normalize
from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.roles import find_roles
from casemate.guard.scrutiny import Scrutiny, abuse_phrases, watch_of
from casemate.guard.stream import StreamRedactor
from casemate.guard.verdict import (
    Action,
    Channel,
    GuardPolicy,
    Judged,
    OverBudget,
    Redaction,
    Span,
    Verdict,
    never_over,
)
from casemate.guard.views import Unmasking

CERTAIN: Final = 0.99
MAX_SPANS: Final = 64
ENTITY: Final = ("pii:", "secret:")
SECRET_REQUESTS: Final = frozenset({"injection:secret-request", "injection:prompt-leak"})
_NO_TIME: Final = Redaction("", refused="over-budget")
_SCRATCH_KEY: Final = bytes(32)  # placeholders of a check are thrown away with its text


class Guard:
    """Judges texts under a policy. Immutable and shared: one per process."""

    def __init__(self, data: GuardData) -> None:
        """Judge with *data*; use `default` or `from_bytes`."""
        self._judge, abuse = data
        self._abuse = abuse_phrases(abuse)
        self._unmasking = Unmasking(self._judge.lexicon, self._judge.ordinary)

    @classmethod
    def default(cls) -> Self:
        """Return a guard with the rules and weights that ship with this version."""
        return cls.from_bytes(shipped_bundle())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return a guard with the rules and weights of a data bundle.

        Raises:
            UntrustedDataError: the bundle is damaged, too large or of another version.

        """
        return cls(read_bundle(data))

    @property
    def judge(self) -> InjectionJudge:
        """Return the injection judge, for `guard explain`."""
        return self._judge

    def check(self, text: str, channel: Channel, policy: GuardPolicy, over_budget: OverBudget = never_over) -> Verdict:
        """Decide about *text* on *channel*. Every fault, oversize or spent budget is a `block`.

        Personal data and secrets that the policy does not simply allow are at least a `flag`.
        """
        return self.judged(text, channel, policy, Placeholders(_SCRATCH_KEY), over_budget).verdict

    def judged(
        self,
        text: str,
        channel: Channel,
        policy: GuardPolicy,
        placeholders: Placeholders,
        over_budget: OverBudget = never_over,
    ) -> Judged:
        """Decide as `check` does and return the redacted text with it, for the cost of one of them."""
        done = self._safely(text, channel, policy, placeholders, over_budget)
        return dataclasses.replace(done, verdict=_act_on_entities(done.verdict, channel, policy))

    def injection(
        self, text: str, channel: Channel, policy: GuardPolicy, over_budget: OverBudget = never_over
    ) -> Verdict:
        """Decide as `check` does, but for injection and hidden channels only: entities add reasons, no action."""
        return self._safely(text, channel, policy, Placeholders(_SCRATCH_KEY), over_budget).verdict

    def redact(
        self,
        text: str,
        channel: Channel,
        policy: GuardPolicy,
        placeholders: Placeholders,
        over_budget: OverBudget = never_over,
    ) -> Redaction:
        """Return *text* with its values handled as *policy* says; `refused`, and none of it, when the guard fails."""
        try:
            if over_budget():
                return _NO_TIME
            done = redact_text(text, policy, channel, placeholders)
            return _NO_TIME if over_budget() else done
        except Exception:  # noqa: BLE001 - whatever breaks inside, the answer is a refusal
            return Redaction("", refused="guard-error")

    def answer(
        self, policy: GuardPolicy, placeholders: Placeholders, canaries: tuple[str, ...] = (), system_prompt: str = ""
    ) -> Scrutiny:
        """Return what looks at one stream of an answer; *canaries* and *system_prompt* must not get out with it."""
        stops, replaced, noted = (
            watch_of(canaries, system_prompt, policy, action) for action in (Action.BLOCK, Action.REDACT, Action.FLAG)
        )
        redactor = StreamRedactor(policy, placeholders, stops)
        return Scrutiny(redactor, policy, self._abuse, ((replaced, Action.REDACT), (noted, Action.FLAG)))

    def wrap_documents(self, documents: Sequence[Document], marker: str) -> str:
        """Return *documents* delimited and datamarked with the caller's random *marker*."""
        return wrap_documents(documents, marker)

    def _safely(
        self, text: str, channel: Channel, policy: GuardPolicy, placeholders: Placeholders, over_budget: OverBudget
    ) -> Judged:
        try:
            return self._judged(text, channel, policy, placeholders, over_budget)
        except Exception:  # noqa: BLE001 - whatever breaks inside, the answer is a refusal
            return _refusal("guard-error")

    def _judged(
        self, text: str, channel: Channel, policy: GuardPolicy, placeholders: Placeholders, over_budget: OverBudget
    ) -> Judged:
        if len(text) > policy.max_chars:
            return _refusal("over-size")
        normal = normalize(text)
        if over_budget():
            return _refusal("over-budget")
        found = self._find(normal, channel, over_budget)
        if over_budget():
            return _refusal("over-budget")
        done = redact_text(text, policy, channel, placeholders)
        verdict = _with_entities(_decide(found, channel, policy), done.spans)
        return _refusal("over-budget") if over_budget() else Judged(verdict, done)

    def _find(self, normal: Normal, channel: Channel, over_budget: OverBudget) -> Injection:
        """Combine hidden channels, control tokens and intent into one score with spans of the original text."""
        roles = () if channel is Channel.SYSTEM else find_roles(normal.text)
        reading = self._judge.read(normal.text)
        intent = self._judge.judge(reading, channel)
        for view in self._unmasking.views(reading, normal.original):
            if over_budget():
                return Injection(1.0, ("over-budget",))
            unmasked = self._judge.judge(view.reading, channel)
            if unmasked.score > max(intent.score, FLAG_AT):
                names = tuple(f"decoded:{name}" for name in view.names)
                intent = Injection(unmasked.score, (*names, *unmasked.reasons), (Span(0, len(normal.text), names[0]),))
        inside = [Span(*normal.span(span.start, span.end), span.type) for span in (*roles, *intent.spans)]
        score = intent.score
        if any(span.type in BLOCKING for span in normal.hidden) or any(span.type == "role:open" for span in roles):
            score = max(score, CERTAIN)
        elif normal.hidden or roles:
            score = max(score, FLAG_AT)
        reasons = dict.fromkeys((*(span.type for span in (*normal.hidden, *roles)), *intent.reasons))
        return Injection(score, tuple(reasons), (*normal.hidden, *inside)[:MAX_SPANS])


def _refusal(reason: str) -> Judged:
    return Judged(Verdict(Action.BLOCK, 1.0, (reason,)), Redaction("", refused=reason))


def _decide(found: Injection, channel: Channel, policy: GuardPolicy) -> Verdict:
    """Turn a score into the action the policy wants for this channel."""
    if found.score < BLOCK_AT:
        action = Action.FLAG if found.reasons and found.score >= FLAG_AT else Action.ALLOW
        asks = channel is Channel.USER and policy.secret_requests is Action.BLOCK
        if asks and found.score >= FLAG_AT and not SECRET_REQUESTS.isdisjoint(found.reasons):
            return Verdict(Action.BLOCK, BLOCK_AT, found.reasons, found.spans)
        return Verdict(action, found.score, found.reasons, found.spans)
    hidden = any(reason in BLOCKING for reason in found.reasons)
    intent = policy.document_injection if channel in UNTRUSTED else policy.injection
    return Verdict(policy.hidden_text if hidden else intent, found.score, found.reasons, found.spans)


def _act_on_entities(verdict: Verdict, channel: Channel, policy: GuardPolicy) -> Verdict:
    """Let the values that were found decide, too."""
    actions = {policy.entity_action(channel, reason) for reason in verdict.reasons if reason.startswith(ENTITY)}
    if Action.BLOCK in actions:
        return dataclasses.replace(verdict, action=Action.BLOCK)
    if verdict.action is Action.ALLOW and not actions <= {Action.ALLOW}:
        return dataclasses.replace(verdict, action=Action.FLAG)
    return verdict


def _with_entities(verdict: Verdict, spans: Sequence[Span]) -> Verdict:
    """Add what personal data and secrets were found."""
    kinds = dict.fromkeys(span.type for span in spans)
    return dataclasses.replace(verdict, reasons=(*verdict.reasons, *kinds), spans=(*verdict.spans, *spans[:MAX_SPANS]))
