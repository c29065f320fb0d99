"""The route of `/api/v1` that shows usage: estimates from noise, each with its error."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from casemate.fleet.accounts.roles import Permission
from casemate.fleet.api.caller import Known
from casemate.fleet.context import Fleet
from casemate.fleet.usage import reports

router = APIRouter()


class Answer(BaseModel):
    """The share of devices with this answer. `share` is unbiased, so it may lie a little outside 0 and 1."""

    answer: str
    share: float
    standard_error: float
    low: float
    high: float


class Question(BaseModel):
    """One question. Not `shown`: fewer reports than `fewest`, which are noise and no number of this fleet."""

    question: str
    asks: str
    reports: int | None
    shown: bool
    one_device_moves: float | None
    answers: list[Answer]


class Usage(BaseModel):
    """A period of thirty days (moments in seconds since the epoch; `complete`: no report can come any more).

    `low` and `high` bound a share with probability `confidence`; they count the noise and the lot that gave each device
    its question. `periods` and `groups` are what there is to ask for.
    """

    period: int | None
    begins: float | None
    ends: float | None
    complete: bool
    group: str | None
    devices: int
    epsilon: float
    confidence: float
    fewest: int
    periods: list[int]
    groups: list[str]
    questions: list[Question]


@router.get("/usage")
async def show_usage(
    request: Request,
    who: Known,
    period: Annotated[int | None, Query(ge=0, le=1 << 20)] = None,
    group: Annotated[str | None, Query(max_length=128)] = None,
) -> Usage:
    """Show what devices whose owners agreed were used for: the newest period with enough reports, unless asked."""
    who.require(Permission.READ)
    fleet: Fleet = request.app.state.fleet
    async with fleet.store.read() as connection:
        return Usage(**await reports.summary(connection, reports.Wanted(period, group), fleet.clock.wall()))
