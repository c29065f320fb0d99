"""What a device can tell its owner about its usage reports: everything."""

from __future__ import annotations

from typing import Any

import msgspec

from casemate.device.home import Home
from casemate.device.usage import choice, diary, ledger
from casemate.errors import CasemateError
from casemate.formats import usage


def of(home: Home, now: float, *, setting: bool) -> dict[str, Any]:
    """Return the state of the reports of *home*; *setting* is `telemetry.usage`.

    `pending` and `last.report` are the bytes that are sent and were sent, as text. A diary that cannot be believed is a
    `fault` and an empty budget.
    """
    fault, held = "", None
    try:
        held = diary.read(home)
    except CasemateError as error:
        fault = error.message
    shown = held or diary.first(now)
    paid = shown.ledger
    return {
        "on": choice.is_on(home, setting),
        "by": "command" if choice.path_of(home).exists() else "setting" if setting else "default",
        "fault": fault,
        "period": shown.period,
        "ends": usage.ends(shown.period),
        "counts": msgspec.to_builtins(shown.counts),
        "waits": _waiting(shown, now),
        "pending": diary.encode_report(shown.pending).decode() if shown.pending else None,
        "last": _last(shown.last),
        "budget": {
            "cap": ledger.CAP,
            "left": 0.0 if fault else round(paid.left(int(now)), 6),
            "report": ledger.rho_of(usage.EPSILON),
            "spends": [{"time": one.time, "question": one.metric, "rho": one.rho} for one in paid.within(int(now))],
        },
    }


def _waiting(shown: diary.Diary, now: float) -> str:
    if shown.closed is None:
        return ""
    if now < shown.closed.due:
        return f"period {shown.closed.period} is over; its report is made at a moment drawn by lot"
    return f"period {shown.closed.period} is over; its report waits for the budget"


def _last(last: diary.Sent | None) -> dict[str, Any] | None:
    if last is None:
        return None
    return {"report": diary.encode_report(last.report).decode(), "time": last.time, "outcome": last.outcome}
