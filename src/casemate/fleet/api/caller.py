"""Who asks the API, and the parameters that several of its routes share."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request

from casemate.errors import UsageError
from casemate.fleet import listing
from casemate.fleet.api import tokens
from casemate.fleet.api.tokens import Caller
from casemate.fleet.context import Fleet
from casemate.fleet.exchange import require_text


async def caller(request: Request) -> Caller:
    """Find whose token it is; what no database stores is refused here, for every route."""
    require_text(*request.path_params.values(), *request.query_params.values())
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        return await tokens.find(connection, request.headers.get("authorization", ""), fleet.clock.wall())


Known = Annotated[Caller, Depends(caller)]
DeviceName = Annotated[str, Path(min_length=1, max_length=128)]
Limit = Annotated[int, Query(ge=1, le=listing.MAX_PAGE)]
IfMatch = Annotated[
    str | None, Header(alias="If-Match", max_length=64, description="The ETag that was seen: refused if it is older")
]


def etag(changed: float) -> str:
    """Return the version of something that says when it *changed*."""
    return f'"{changed!r}"'


def seen(if_match: str | None) -> float | None:
    """Return the version that a caller saw.

    Raises:
        UsageError: it is no ETag of ours.

    """
    if if_match is None:
        return None
    try:
        version = float(if_match.strip().strip('"'))
    except ValueError:
        version = math.nan
    if not math.isfinite(version):
        raise UsageError("If-Match is an ETag of this API")
    return version
