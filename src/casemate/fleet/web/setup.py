"""How the server is set up; changed on the server itself."""

from __future__ import annotations

from starlette.responses import Response

from casemate.fleet import setup
from casemate.fleet.web.menu import navigation
from casemate.fleet.web.visit import Visit


async def show(visit: Visit) -> Response:
    """Show the settings."""
    found = await setup.describe(visit.site.fleet)
    return visit.page("settings.html", navigation=await navigation(visit), setup=found)
