"""Releases and rollouts: what can be offered, whom it reaches, what the numbers say, and the button that stops it."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import sqlalchemy as sa
from starlette.responses import RedirectResponse, Response

from casemate.errors import UsageError
from casemate.fleet.accounts import roles
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.rollout import records, releases, story, terms
from casemate.fleet.rollout.ranks import MATTERS
from casemate.fleet.rollout.records import Move, Wanted
from casemate.fleet.rollout.states import TABLE, Event, State
from casemate.fleet.rollout.story import Evidence
from casemate.fleet.store import tables
from casemate.fleet.web import plots
from casemate.fleet.web.menu import navigation
from casemate.fleet.web.visit import Visit

SOAKS: Final = {"1": "an hour", "4": "4 hours", "24": "a day", "72": "3 days"}
BASELINES: Final = {"0.001": "1 in 1 000", "0.005": "1 in 200", "0.01": "1 in 100", "0.02": "1 in 50"}
KINDS: Final = {
    "good": "good",
    "soaking": "soaking",
    "installing": "installing",
    "failed": "failed",
    "silent": "silent",
    "offered": "not come yet",
}
"""What can become of a device in a batch, in the order of a bar."""
_FROM: Final = {"installed": "soaking", "taken": "installing"}
_AXIS: Final = (0.5, 2.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """One batch as a row: it ends when *upto* devices have it; *counts* follow `KINDS`."""

    number: int
    upto: int
    size: int
    is_reached: bool
    counts: dict[str, int]
    absent: int

    @property
    def bar(self) -> list[plots.Segment]:
        """Return its bar."""
        return plots.bar(list(self.counts.items()), self.size)


async def show_releases(visit: Visit) -> Response:
    """Show what channels offered, and what of it can be rolled out."""
    device = tables.device.c
    async with visit.site.fleet.store.read() as connection:
        found = await releases.listed(connection, visit.now)
        source = await releases.source(connection)
        named = sa.select(device.group_name).where(device.group_name != "").distinct().order_by(device.group_name)
        groups = (await connection.execute(named.limit(500))).scalars().all()
    return visit.page(
        "releases.html",
        navigation=await navigation(visit),
        releases=found,
        source=source,
        groups=groups,
        soaks=SOAKS,
        baselines=BASELINES,
        may=roles.allowed(visit.who.role, Permission.ROLLOUT),
    )


async def index(visit: Visit) -> Response:
    """Show the rollouts, newest first."""
    async with visit.site.fleet.store.read() as connection:
        found = await records.listed(connection)
        known = {one["id"]: one for one in await releases.listed(connection, visit.now)}
    rows = [{**one, "release": known.get(one["release_id"])} for one in found]
    return visit.page(
        "rollouts.html", navigation=await navigation(visit), rollouts=[(one, bar_of(one)) for one in rows]
    )


async def create(visit: Visit) -> Response:
    """Make a draft of what the form says."""
    soak, baseline = visit.field("soak", 4), visit.field("baseline", 8)
    if soak not in SOAKS or baseline not in BASELINES:
        raise UsageError("choose a soak and a failure rate of the list")
    given = terms.read({"soak": float(soak) * 3600, "baseline": float(baseline)})
    wanted = Wanted(visit.field("release", 32), visit.field("group", 128) or None, given)
    async with visit.site.fleet.store.write() as connection:
        name = await records.create(connection, visit.site.fleet, wanted, visit.who.name, visit.now)
    return RedirectResponse(f"/rollouts/{name}", 303)


async def show(visit: Visit) -> Response:
    """Show one rollout: whom it reached, the verdict and its reasons, and what can be done."""
    name = visit.request.path_params["rollout"]
    async with visit.site.fleet.store.read() as connection:
        found = await records.show(connection, name)
        release = await releases.find(connection, found["release_id"])
        evidence = await story.evidence(connection, name)
        events = await story.history(connection, name)
    return visit.page(
        "rollout.html",
        navigation=await navigation(visit),
        rollout=found,
        release=releases.described(release, visit.now),
        batches=batches(found),
        kinds=KINDS,
        evidence=evidence,
        plot=plots.test_plot(evidence),
        compared=compared(evidence),
        matters=plots.share_of_axis(MATTERS, *_AXIS),
        same=plots.share_of_axis(1.0, *_AXIS),
        events=events,
        stopped=next((event for event in events if event["action"] in _STOPS), None),
        actions=possible(visit, found),
        proofs={
            event.value for event in Event if records.needs_proof(event, group=found["group"], verdict=found["verdict"])
        },
        own=found["created_by"] == visit.who.name,
    )


_STOPS: Final = frozenset({"rollout.stop", "rollout.pause", "rollout.abort"})


async def change(visit: Visit, event: Event) -> Response:
    """Move a rollout, as the person saw it: who was slower is told, and who must prove themselves first is asked."""
    name, version = visit.request.path_params["rollout"], visit.number("version")
    if version is None:
        raise UsageError("this form is not one of ours: it names no version")
    roll_back = visit.field("roll_back", 4) == "yes"
    wanted = Move(event, visit.who.name, visit.now, version, visit.field("why"), roll_back)
    async with visit.site.fleet.store.write() as connection:
        row = await records.find(connection, name, lock=True)  # what is judged here is what is changed below
        proof = records.needs_proof(event, group=row.group_name, verdict=row.verdict, roll_back=roll_back)
        visit.demand(records.NEEDS[event], proof=proof)
        await records.change(connection, visit.site.fleet, name, wanted)
    return RedirectResponse(f"/rollouts/{name}", 303)


def possible(visit: Visit, rollout: dict[str, Any]) -> dict[str, bool]:
    """Return which moves a person sees on *rollout*."""
    state = State(rollout["state"])
    return {
        event.value: (state, event) in TABLE and roles.allowed(visit.who.role, permission)
        for event, permission in records.NEEDS.items()
    }


def batches(rollout: dict[str, Any]) -> list[Batch]:
    """Return the batches of *rollout* as rows, those it has not come to as well."""
    seen = {one["batch"]: one for one in rollout["batches"]}
    found, before = [], 0
    for number, upto in enumerate(sizes(rollout)):
        states = seen.get(number, {})
        named = {_FROM.get(state, state): count for state, count in states.items() if state != "batch"}
        counts = {kind: named.get(kind, 0) for kind in KINDS}
        size = max(upto - before, sum(counts.values()))
        found.append(Batch(number, upto, size, bool(states), counts, named.get("absent", 0)))
        before = upto
    return found


def sizes(rollout: dict[str, Any]) -> list[int]:
    """Return up to how many devices each batch goes, as planned or as widened: the last is the whole fleet."""
    planned = list(rollout["sizes"])
    if rollout["state"] == State.DRAFT or not rollout["devices"]:
        given = rollout["terms"]
        return [given["first"], given["first"] + given["second"]]
    reached = max((one["batch"] for one in rollout["batches"]), default=0)
    return planned if reached < len(planned) else [*planned, *[planned[-1]] * (reached + 1 - len(planned))]


def bar_of(rollout: dict[str, Any]) -> list[plots.Segment]:
    """Return the bar of a whole rollout."""
    counts = [(kind, rollout[kind]) for kind in ("good", "failed", "silent")]
    return plots.bar([counts[0], ("soaking", rollout["pending"]), *counts[1:]], max(rollout["devices"], 1))


def compared(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the comparisons as rows, each with its place on the axis."""
    return [
        {**dataclasses.asdict(one), "at": None if one.ratio is None else plots.share_of_axis(one.ratio, *_AXIS)}
        for one in evidence.comparisons
    ]
