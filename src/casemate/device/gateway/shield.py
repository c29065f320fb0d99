"""The gateway's seam to the guard: what it asks of it, and the adapter around `casemate.guard.Guard`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Protocol

from casemate.device.gateway.answer import OutputGuard
from casemate.formats.policy import AppPolicy
from casemate.guard import Action, Channel, Document, Guard, GuardPolicy, OverBudget, Verdict
from casemate.guard.output import OutputWatch
from casemate.guard.placeholders import Placeholders
from casemate.guard.redact import redact_text
from casemate.guard.stream import StreamRedactor


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """What the guard must know about one request beside its texts."""

    policy: GuardPolicy
    key: bytes
    """Makes placeholders stable within a conversation and useless outside it."""
    canaries: tuple[str, ...] = ()
    system_prompt: str = ""


class Shield(Protocol):
    """What the gateway asks of a guard. None of it raises for any text."""

    def check(self, text: str, channel: Channel, policy: GuardPolicy, over_budget: OverBudget) -> Verdict:
        """Judge one text."""
        ...

    def redact(self, text: str, channel: Channel, conversation: Conversation, over_budget: OverBudget) -> str:
        """Return *text* without what the policy wants replaced."""
        ...

    def wrap_documents(self, documents: Sequence[Document], marker: str) -> str:
        """Fence documents with a random marker."""
        ...

    def open_answer(self, conversation: Conversation) -> OutputGuard:
        """Begin to guard one choice of an answer."""
        ...


def guard_policy(policy: AppPolicy) -> GuardPolicy:
    """Return what *policy* asks of the guard. A monitor finds everything and changes nothing."""
    rules = policy.guard
    monitor = rules.mode == "monitor"
    output = {"*": Action.FLAG} if monitor else {kind: Action(action) for kind, action in rules.output.items()}
    incoming = {kind: _monitored(Action(action), monitor=monitor) for kind, action in rules.input.items()}
    return GuardPolicy(
        input_entities=MappingProxyType(incoming),
        output_entities=MappingProxyType(output),
        injection=Action(rules.injection),
        document_injection=Action(rules.documents),
        hidden_text=Action(rules.hidden_text),
        system_overlap=_monitored(Action(rules.system_overlap), monitor=monitor),
        link_hosts=rules.link_hosts,
        allow_values=rules.allow_values,
        mode=rules.mode,
    )


def _monitored(action: Action, *, monitor: bool) -> Action:
    return Action.FLAG if monitor and action in {Action.REDACT, Action.BLOCK} else action


class GuardShield:
    """The real guard behind the seam."""

    def __init__(self, guard: Guard) -> None:
        """Ask *guard*."""
        self._guard = guard

    def check(self, text: str, channel: Channel, policy: GuardPolicy, over_budget: OverBudget) -> Verdict:
        """See `Shield.check`."""
        return self._guard.check(text, channel, policy, over_budget)

    def redact(self, text: str, channel: Channel, conversation: Conversation, over_budget: OverBudget) -> str:
        """See `Shield.redact`."""
        del over_budget
        return redact_text(text, conversation.policy, channel, Placeholders(conversation.key)).text

    def wrap_documents(self, documents: Sequence[Document], marker: str) -> str:
        """See `Shield.wrap_documents`."""
        return self._guard.wrap_documents(documents, marker)

    def open_answer(self, conversation: Conversation) -> OutputGuard:
        """See `Shield.open_answer`."""
        watched = conversation.system_prompt if conversation.policy.system_overlap is Action.BLOCK else ""
        watch = OutputWatch(conversation.canaries, watched)
        return StreamRedactor(conversation.policy, Placeholders(conversation.key), watch)
