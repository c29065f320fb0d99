"""What devices are used for: estimates from noise, each drawn with its error, and in words what is not known."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from casemate.fleet.usage import reports
from casemate.fleet.usage.reports import Wanted
from casemate.fleet.web.menu import navigation
from casemate.fleet.web.visit import Visit


async def show(visit: Visit) -> Response:
    """Show a period, of the whole fleet or of a group."""
    period, group = visit.number("period"), visit.field("group", 128) or None
    async with visit.site.fleet.store.read() as connection:
        found = await reports.summary(connection, Wanted(period, group), visit.now)
    kept = {"group": group} if group else {}
    return visit.page(
        "usage.html",
        navigation=await navigation(visit),
        usage=found,
        questions=[question for question in found["questions"] if question["shown"]],
        hidden=[question for question in found["questions"] if not question["shown"]],
        periods=[(each, "?" + urlencode({"period": each, **kept})) for each in found["periods"][:6]],
        placed=placed,
    )


def placed(answer: dict[str, Any]) -> dict[str, float]:
    """Return where the parts of an error bar stand, in percent of an axis from 0 to 1; outside is at the end."""
    return {name: round(100 * min(1.0, max(0.0, answer[name])), 2) for name in ("low", "share", "high")}
