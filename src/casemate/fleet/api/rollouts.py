"""`/api/v1/releases` and `/api/v1/rollouts`. A rollout's `version` is its ETag; a change may name it in `If-Match`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from casemate.errors import UsageError
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.api.caller import IfMatch, Known, etag, seen
from casemate.fleet.api.shapes import PRINTED
from casemate.fleet.context import Fleet
from casemate.fleet.rollout import records, releases, terms
from casemate.fleet.rollout.records import Move, Wanted
from casemate.fleet.rollout.states import Event

router = APIRouter()
Name = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]


class NewRollout(BaseModel):
    """A rollout to make. *release*: its id, or a channel: what that offers now; *group*: left out, every device."""

    model_config = ConfigDict(extra="forbid")
    release: Annotated[str, Field(min_length=1, max_length=128, pattern=PRINTED)]
    group: Annotated[str, Field(max_length=128, pattern=PRINTED)] | None = None
    terms: dict[str, Any] = {}


class MoveRequest(BaseModel):
    """Why, for the audit log and the page; *roll_back* only with an abort."""

    model_config = ConfigDict(extra="forbid")
    why: Annotated[str, Field(max_length=200)] = ""
    roll_back: bool = False


class ReleaseList(BaseModel):
    """Releases that channels offered, newest first, and where they come from."""

    items: list[dict[str, Any]]
    source: dict[str, Any] | None


class RolloutList(BaseModel):
    """Rollouts, newest first."""

    items: list[dict[str, Any]]


class Rollout(BaseModel):
    """One rollout; every other field as the list has them, with `batches` and `failures`."""

    model_config = ConfigDict(extra="allow")
    id: str
    state: str
    version: int


@router.get("/releases")
async def list_releases(request: Request, who: Known) -> ReleaseList:
    """List what the release repository offered, and what of it can be rolled out."""
    who.require(Permission.READ)
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        found = await releases.listed(connection, fleet.clock.wall())
        return ReleaseList(items=found, source=await releases.source(connection))


@router.get("/rollouts")
async def list_rollouts(request: Request, who: Known) -> RolloutList:
    """List rollouts."""
    who.require(Permission.READ)
    async with request.app.state.fleet.store.read() as connection:
        return RolloutList(items=await records.listed(connection))


@router.post("/rollouts", status_code=201)
async def create_rollout(request: Request, response: Response, who: Known, body: NewRollout) -> Rollout:
    """Make a draft."""
    who.require(Permission.ROLLOUT)
    fleet: Fleet = request.app.state.fleet
    wanted = Wanted(body.release, body.group, terms.read(body.terms))
    async with fleet.store.write() as connection:
        name = await records.create(connection, fleet, wanted, who.actor, fleet.clock.wall())
    return await _shown(fleet, name, response)


@router.get("/rollouts/{rollout}")
async def show_rollout(request: Request, response: Response, who: Known, rollout: Name) -> Rollout:
    """Show one rollout, its batches, and the devices that failed."""
    who.require(Permission.READ)
    return await _shown(request.app.state.fleet, rollout, response)


@router.post("/rollouts/{rollout}/{verb}")
async def move_rollout(  # noqa: PLR0917 - one parameter per part of the request
    request: Request,
    response: Response,
    who: Known,
    rollout: Name,
    verb: Literal["approve", "start", "pause", "resume", "abort"],
    body: MoveRequest,
    if_match: IfMatch = None,
) -> Rollout:
    """Approve, start, pause, resume or abort. `If-Match` refuses when somebody else was faster.

    Refused here, because it needs a person with a passkey: to start one for every device, to resume one that the
    numbers stopped, to abort with `roll_back`.
    """
    event = Event(verb)
    who.require(records.NEEDS[event])
    if body.roll_back and event is not Event.ABORT:
        raise UsageError("roll_back goes with an abort")
    fleet: Fleet = request.app.state.fleet
    wanted = Move(event, who.actor, fleet.clock.wall(), seen(if_match), body.why, body.roll_back)
    async with fleet.store.write() as connection:
        row = await records.find(connection, rollout, lock=True)
        proof = records.needs_proof(event, group=row.group_name, verdict=row.verdict, roll_back=body.roll_back)
        who.require(records.NEEDS[event], proof=proof)
        await records.change(connection, fleet, rollout, wanted)
    return await _shown(fleet, rollout, response)


async def _shown(fleet: Fleet, name: str, response: Response) -> Rollout:
    async with fleet.store.read() as connection:
        found = await records.show(connection, name)
    response.headers["ETag"] = etag(found["version"])
    return Rollout(**found)
