"""What the guard says: channels, actions, spans, verdicts, and the policy it was asked to apply.

Pure data. The guard's functions take text, a channel and a `GuardPolicy` and answer with a `Verdict` or a `Redaction`;
they never raise out of the pipeline for any text: a fault inside is a `block` with reason `guard-error`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Channel(StrEnum):
    """Where a text stands: what is normal in one place is an attack in another."""

    SYSTEM = "system"
    USER = "user"
    DOCUMENT = "document"
    TOOL = "tool"
    OUTPUT = "output"


class Action(StrEnum):
    """What a policy does with a finding; also a verdict's outcome (a verdict is never `redact`)."""

    ALLOW = "allow"
    FLAG = "flag"
    REDACT = "redact"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Span:
    """A finding, in code points of the text that came in; `type`: `pii:EMAIL_ADDRESS`, `secret:jwt`, `hidden:tags`."""

    start: int
    end: int
    type: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision for one text. `score` >= 0.5 exactly when the injection decision is `block`."""

    action: Action
    score: float = 0.0
    reasons: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Redaction:
    """A text with its findings replaced by typed placeholders; `spans` are in the original.

    `refused` says why nothing of the text may be used: `over-budget`, `guard-error`.
    """

    text: str
    spans: tuple[Span, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and the text as its policy lets it on: found in one pass, so that they cannot disagree."""

    verdict: Verdict
    redaction: Redaction


@dataclass(frozen=True, slots=True)
class GuardPolicy:
    """What one app wants done. Built from the app's policy file; the defaults are the safe ones.

    `entities` maps a type (`pii:EMAIL_ADDRESS`), a family (`pii:*`, `secret:*`) or `*` to an action; the most specific
    wins. `mode` "monitor" judges without acting (the gateway decides what that means; verdicts are unchanged).
    `allow_values` are never a finding. `link_hosts` may appear in markdown links and images of an answer. `abuse` maps
    a severity and `terms` words of the operator to an action. `secret_requests` is for texts that are below the
    threshold and seem to ask for secrets: worth a refusal where there are any.
    """

    input_entities: Mapping[str, Action] = field(default_factory=lambda: MappingProxyType({"*": Action.FLAG}))
    output_entities: Mapping[str, Action] = field(default_factory=lambda: MappingProxyType({"*": Action.REDACT}))
    injection: Action = Action.BLOCK
    document_injection: Action = Action.BLOCK
    hidden_text: Action = Action.BLOCK
    secret_requests: Action = Action.FLAG
    canary_leak: Action = Action.BLOCK
    system_overlap: Action = Action.BLOCK
    schema: Action = Action.FLAG
    abuse: Mapping[str, Action] = field(default_factory=lambda: MappingProxyType({}))
    terms: Mapping[str, Action] = field(default_factory=lambda: MappingProxyType({}))
    link_hosts: tuple[str, ...] = ()
    allow_values: Container[str] = ()
    mode: str = "enforce"
    max_chars: int = 200_000

    def entity_action(self, channel: Channel, kind: str) -> Action:
        """Return the action for an entity *kind* on *channel*: exact type, then family, then `*`."""
        table = self.output_entities if channel is Channel.OUTPUT else self.input_entities
        family = kind.partition(":")[0] + ":*"
        return table.get(kind) or table.get(family) or table.get("*") or Action.BLOCK

    def answer_action(self, kind: str) -> Action:
        """Return the action for whatever *kind* was found in an answer: an entity, abuse, a term or a leak."""
        family, _, name = kind.partition(":")
        if family == "abuse":
            return self.abuse.get(name, Action.FLAG)
        if family == "term":
            return Action.FLAG if name == "noted" else Action.REDACT
        if kind == "canary":
            return self.canary_leak
        return self.system_overlap if kind == "system-overlap" else self.entity_action(Channel.OUTPUT, kind)


OverBudget = Callable[[], bool]
"""Asked between steps: True means time is up, and the verdict is `block` with reason `over-budget`."""


def never_over() -> bool:
    """Return False: no budget (tests, offline evaluation)."""
    return False
