"""Orders for many devices in `/api/v1`: shown first, then confirmed by their number."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Path, Request

from casemate.fleet import bulk
from casemate.fleet.api import shapes
from casemate.fleet.api.caller import Known
from casemate.fleet.context import Fleet
from casemate.fleet.listing import Filter

router = APIRouter()
Name = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


@router.post("/bulk", status_code=201)
async def show_bulk(request: Request, who: Known, body: shapes.BulkWish) -> shapes.Bulk:
    """Show for which devices an order would be. Nothing happens; what is shown is what a confirmation does."""
    who.require(bulk.ACTIONS[body.action].permission)
    fleet: Fleet = request.app.state.fleet
    chosen = Filter(body.state, body.group or None, body.asset, body.package)
    wish = bulk.Wish(body.action, chosen, body.to_group, body.reason)
    async with fleet.store.write() as connection:
        known = await bulk.show(connection, wish, who.actor, fleet.clock.wall())
        return shapes.Bulk(**dataclasses.asdict(await bulk.describe(connection, known)))


@router.get("/bulk/{order}")
async def describe_bulk(request: Request, who: Known, order: Name) -> shapes.Bulk:
    """Show an order for many devices, and how far it is."""
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        who.require((await bulk.action_of(connection, order)).permission)
        return shapes.Bulk(**dataclasses.asdict(await bulk.describe(connection, order)))


@router.post("/bulk/{order}/confirm")
async def confirm_bulk(request: Request, who: Known, order: Name, body: shapes.Confirmation) -> shapes.Bulk:
    """Let an order begin, by who looked at it and knows how many devices it is for."""
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.write() as connection:
        who.require((await bulk.action_of(connection, order)).permission)
        await bulk.confirm(connection, fleet, order, body.count, who.actor)
    await bulk.carry_out(fleet, request.app.state.commander, order, bulk.AT_ONCE)
    async with fleet.store.read() as connection:
        return shapes.Bulk(**dataclasses.asdict(await bulk.describe(connection, order)))
