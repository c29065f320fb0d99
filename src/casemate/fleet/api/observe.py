"""The routes of `/api/v1` that look: what is installed where, how the fleet was, how the server is set up."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request

from casemate.fleet import packages, setup, trend
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.api import shapes
from casemate.fleet.api.caller import Known, Limit
from casemate.fleet.context import Fleet
from casemate.fleet.packages import Wanted
from casemate.fleet.rollout import story

router = APIRouter()
Text = Annotated[str, Query(max_length=128)]


@router.get("/inventory")
async def search_inventory(  # noqa: PLR0917 - one parameter per query field
    request: Request,
    who: Known,
    kind: Text = "",
    name: Text = "",
    version: Text = "",
    digest: Text = "",
    cursor: Annotated[str, Query(max_length=1024)] = "",
    limit: Limit = packages.PAGE,
) -> shapes.PackagePage:
    """Search what devices have installed; all but `kind` are beginnings. Without any: all but the packages."""
    who.require(Permission.READ)
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        found = await packages.find(connection, Wanted(kind, name, version, digest), cursor=cursor, size=limit)
    shown = [shapes.Package.model_construct(**each) for each in found.packages]
    return shapes.PackagePage.model_construct(packages=shown, cursor=found.cursor or None)


@router.get("/inventory/{package}")
async def show_package(
    request: Request, who: Known, package: Annotated[int, Path(ge=0, le=2**53)]
) -> shapes.PackageDetail:
    """Show one package and its versions; `/devices?package=` lists who has it."""
    who.require(Permission.READ)
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        return shapes.PackageDetail(**await packages.show(connection, package))


@router.get("/health")
async def fleet_health(
    request: Request, who: Known, span: Literal["6h", "day", "week", "month"] = "day"
) -> shapes.Trend:
    """Show how the whole fleet was, step by step, oldest first; a step without a sample is missing.

    `first_token_median` and `first_token_p95` (ms, over devices) are what health gates measured; null: none did.
    """
    who.require(Permission.READ)
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        return shapes.Trend(**dataclasses.asdict(await trend.over(connection, span, fleet.clock.wall())))


@router.get("/settings")
async def show_settings(request: Request, who: Known) -> shapes.Setup:
    """Show how this server is set up; nothing secret is in it."""
    who.require(Permission.READ)
    return shapes.Setup(**dataclasses.asdict(await setup.describe(request.app.state.fleet)))


@router.get("/rollouts/{rollout}/evidence")
async def show_evidence(
    request: Request, who: Known, rollout: Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
) -> shapes.Evidence:
    """Show what a rollout's verdict rests on: the path of the sequential test with its bounds, and comparisons."""
    who.require(Permission.READ)
    async with request.app.state.fleet.store.read() as connection:
        return shapes.Evidence(**dataclasses.asdict(await story.evidence(connection, rollout)))
