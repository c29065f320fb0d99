"""Redaction of a whole text: what a stream of it would let out, found faster.

A scan for evidence says where a value can be; only the segments there are looked at. Skipping the others changes
nothing, because no detector finds anything in them.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from casemate.guard.engine_scan import PlaceScanner, best_scanner
from casemate.guard.flow import Flow, Progress
from casemate.guard.fold import fold
from casemate.guard.placeholders import Placeholders
from casemate.guard.session import Session, Settings
from casemate.guard.verdict import Action, Channel, GuardPolicy, Redaction

SHORT: Final = 48
"""A text this short is read from end to end: looking for evidence would take longer."""


@cache
def scanner() -> PlaceScanner:
    """Return this machine's scanner, built at the first use (a third of a second)."""
    return best_scanner()


def redact_text(
    text: str, policy: GuardPolicy, channel: Channel, placeholders: Placeholders, places: PlaceScanner | None = None
) -> Redaction:
    """Return *text* with its values handled as *policy* says for *channel*; spans are in code points of *text*.

    *places* stands in for this machine's own scanner.
    """
    view = fold(text)
    settings = Settings(policy, channel)
    flow = Flow(text, view, Session(settings, placeholders), Progress(), None)
    dates = settings.action("pii:DATE_TIME") is not Action.ALLOW
    found = None if len(text) <= SHORT else (places or scanner()).survey(view.text, dates=dates)
    done = flow.run(final=True) if found is None else flow.run_near(found)
    return Redaction(done.text, tuple(done.spans))
