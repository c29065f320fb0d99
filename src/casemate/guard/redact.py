"""Redaction of a whole text: the stream that came in one piece (see `segments` for why that is the same)."""

from __future__ import annotations

from casemate.guard.flow import Flow, Progress
from casemate.guard.fold import fold
from casemate.guard.placeholders import Placeholders
from casemate.guard.session import Session, Settings
from casemate.guard.verdict import Channel, GuardPolicy, Redaction


def redact_text(text: str, policy: GuardPolicy, channel: Channel, placeholders: Placeholders) -> Redaction:
    """Return *text* with its values handled as *policy* says for *channel*; spans are in code points of *text*."""
    session = Session(Settings(policy, channel), placeholders)
    done = Flow(text, fold(text), session, Progress(), None).run(final=True)
    return Redaction(done.text, tuple(done.spans))
