"""Who asks the API, and the parameters that several of its routes share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query, Request

from casemate.fleet import listing
from casemate.fleet.api import tokens
from casemate.fleet.api.tokens import Caller
from casemate.fleet.context import Fleet


async def caller(request: Request) -> Caller:
    """Find whose token it is."""
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        return await tokens.find(connection, request.headers.get("authorization", ""), fleet.clock.wall())


Known = Annotated[Caller, Depends(caller)]
DeviceName = Annotated[str, Path(min_length=1, max_length=128)]
Limit = Annotated[int, Query(ge=1, le=listing.MAX_PAGE)]
