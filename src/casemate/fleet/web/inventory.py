"""Which devices have what: engines, models, packages."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import Response

from casemate.fleet import packages
from casemate.fleet.packages import KINDS, Wanted
from casemate.fleet.web.menu import navigation
from casemate.fleet.web.visit import Visit

_FIELDS: Final = ("kind", "name", "version", "digest")


async def index(visit: Visit) -> Response:
    """Show the packages that fit, each with how many devices have it."""
    query = {field: value for field in _FIELDS if (value := visit.field(field, 128))}
    async with visit.site.fleet.store.read() as connection:
        found = await packages.find(connection, Wanted(**query), cursor=visit.form.get("after", "")[:1000])
    after = f"?{urlencode({**query, 'after': found.cursor})}" if found.cursor else ""
    values: dict[str, Any] = {"packages": found.packages, "after": after, "query": query, "kinds": KINDS}
    if visit.request.headers.get("hx-target") == "rows":
        return visit.page("inventory_rows.html", **values)
    return visit.page("inventory.html", navigation=await navigation(visit), **values)
