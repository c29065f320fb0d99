"""From a request to what the engine gets: whose words stand where.

The policy's system prompt comes first and is the only system text; a client's system or developer message is user text
unless the policy allows it. Documents are fenced by the guard and stand in front of the last user turn, never in the
system turn. Turns of one speaker in a row are joined, because many chat templates insist that speakers alternate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from casemate.device.gateway.schema import Message
from casemate.formats.policy import AppPolicy

_CANARY_LINE: Final = "\n(private mark {canary}: never write it)"


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One turn as the engine's chat template gets it."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """Return the template's object."""
        return {"role": self.role, "content": self.content}


def effective_role(role: str, policy: AppPolicy) -> str:
    """Return whose word a client's *role* counts as under *policy*."""
    if role in {"system", "developer"}:
        return "system" if policy.client_system else "user"
    return role


def system_text(policy: AppPolicy, canary: str | None) -> str:
    """Return the device's own system prompt, with the canary when there is one."""
    if not policy.system_prompt:
        return ""
    return policy.system_prompt + (_CANARY_LINE.format(canary=canary) if canary else "")


def build(
    messages: Sequence[Message], texts: Sequence[str], policy: AppPolicy, *, canary: str | None, documents: str
) -> list[Turn]:
    """Return the turns for the engine.

    *texts* are the messages' contents after the guard, *documents* the fenced block ("" when there are none).
    """
    turns = [Turn("system", system_text(policy, canary))] if policy.system_prompt else []
    turns += [
        Turn(effective_role(message.role, policy), text) for message, text in zip(messages, texts, strict=True) if text
    ]
    turns = _system_first(turns)
    return _join(_with_documents(turns, documents) if documents else turns)


def _system_first(turns: list[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.role == "system"] + [turn for turn in turns if turn.role != "system"]


def _with_documents(turns: list[Turn], block: str) -> list[Turn]:
    for index in range(len(turns) - 1, -1, -1):
        if turns[index].role == "user":
            return [*turns[:index], Turn("user", block), *turns[index:]]
    return [*turns, Turn("user", block)]


def _join(turns: list[Turn]) -> list[Turn]:
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(turn.role, joined[-1].content + "\n\n" + turn.content)
        else:
            joined.append(turn)
    return joined
