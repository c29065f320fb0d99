"""The gateway's seam to the guard: what it asks of it, and the adapter around `casemate.guard.Guard`."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from casemate.device.gateway.answer import OutputGuard
from casemate.formats.guard_rules import Actions, Allowed
from casemate.formats.policy import AppPolicy
from casemate.guard import Action, Channel, Document, Guard, GuardPolicy, Judged, OverBudget
from casemate.guard.allow import AllowList
from casemate.guard.conformity import Form
from casemate.guard.placeholders import Placeholders

SECRETS: Final = "secret:*"


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """What the guard must know about one request beside its texts."""

    policy: GuardPolicy
    key: bytes
    """Makes placeholders stable within a conversation and useless outside it."""
    canaries: tuple[str, ...] = ()
    system_prompt: str = ""
    form: Form | None = None
    """The JSON an answer was asked to be."""


class Shield(Protocol):
    """What the gateway asks of a guard. None of it raises for any text."""

    def check(self, text: str, channel: Channel, conversation: Conversation, over_budget: OverBudget) -> Judged:
        """Judge one text, and return it without what the policy wants replaced."""
        ...

    def wrap_documents(self, documents: Sequence[Document], marker: str) -> str:
        """Fence documents with a random marker."""
        ...

    def open_answer(self, conversation: Conversation) -> OutputGuard:
        """Begin to guard one choice of an answer."""
        ...


def guard_policy(policy: AppPolicy, today: dt.date, *, documents: bool = False) -> GuardPolicy:
    """Return what *policy* asks of the guard *today* (UTC) for a request that has *documents* or not.

    A monitor finds everything and changes nothing. Beside documents, secrets are replaced before the model sees them
    unless the policy lets them stand there: what a document cannot read it cannot have carried out.
    """
    rules = policy.guard
    monitor = rules.mode == "monitor"
    incoming = dict(rules.input)
    if documents and "secrets" not in rules.beside_documents:
        incoming.update((kind, "redact") for kind in (SECRETS, *_softer_on_secrets(rules.input)))
    return GuardPolicy(
        input_entities=_actions(incoming, monitor=monitor),
        output_entities=MappingProxyType({"*": Action.FLAG}) if monitor else _actions(rules.output, monitor=False),
        injection=Action(rules.injection),
        document_injection=Action(rules.documents),
        hidden_text=Action(rules.hidden_text),
        secret_requests=Action(rules.secret_requests) if policy.system_prompt else Action.FLAG,
        canary_leak=_action(rules.canary_leak, monitor=monitor),
        system_overlap=_action(rules.system_overlap, monitor=monitor),
        schema=_action(rules.schema, monitor=monitor),
        abuse=_actions(rules.abuse, monitor=monitor),
        terms=_actions(rules.terms, monitor=monitor),
        link_hosts=rules.link_hosts,
        allow_values=_allow_list(rules.allow_values, today),
        mode=rules.mode,
    )


def _softer_on_secrets(table: Actions) -> Iterable[str]:
    return (kind for kind, action in table.items() if kind.startswith("secret:") and action in {"allow", "flag"})


def _actions(table: Actions, *, monitor: bool) -> Mapping[str, Action]:
    return MappingProxyType({name: _action(action, monitor=monitor) for name, action in table.items()})


def _action(name: str, *, monitor: bool) -> Action:
    action = Action(name)
    return Action.FLAG if monitor and action in {Action.REDACT, Action.BLOCK} else action


def _allow_list(allowed: Sequence[Allowed], today: dt.date) -> AllowList:
    """Return what is still allowed: an entry's last day is its last."""
    current = [entry for entry in allowed if entry.until is None or today <= entry.until]
    return AllowList.of(
        tuple(entry.text for entry in current if not entry.is_pattern),
        tuple(entry.text for entry in current if entry.is_pattern),
    )


class GuardShield:
    """The real guard behind the seam."""

    def __init__(self, guard: Guard) -> None:
        """Ask *guard*."""
        self._guard = guard

    def check(self, text: str, channel: Channel, conversation: Conversation, over_budget: OverBudget) -> Judged:
        """See `Shield.check`."""
        return self._guard.judged(text, channel, conversation.policy, Placeholders(conversation.key), over_budget)

    def wrap_documents(self, documents: Sequence[Document], marker: str) -> str:
        """See `Shield.wrap_documents`."""
        return self._guard.wrap_documents(documents, marker)

    def open_answer(self, conversation: Conversation) -> OutputGuard:
        """See `Shield.open_answer`."""
        placeholders = Placeholders(conversation.key)
        return self._guard.answer(conversation.policy, placeholders, conversation.canaries, conversation.system_prompt)
