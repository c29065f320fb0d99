"""The menu: which pages there are, in which order, who may open them, and what waits on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

from casemate.fleet.accounts import roles
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.rollout import records
from casemate.fleet.states import State
from casemate.fleet.store import rollout_tables, tables
from casemate.fleet.web.visit import Visit


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One page of the menu. *count*: how many things wait there for a person."""

    path: str
    label: str
    permission: Permission = Permission.READ
    count: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """Pages that belong together."""

    label: str
    entries: tuple[Entry, ...]


SECTIONS: Final = (
    Section(
        "Fleet",
        (
            Entry("/", "Overview"),
            Entry("/devices", "Devices"),
            Entry("/health", "Health"),
            Entry("/inventory", "Inventory"),
            Entry("/usage", "Usage"),
            Entry("/alerts", "Alerts"),
        ),
    ),
    Section(
        "Change", (Entry("/releases", "Releases"), Entry("/rollouts", "Rollouts"), Entry("/enrolment", "Enrolment"))
    ),
    Section(
        "Proof",
        (Entry("/policies", "Policies"), Entry("/grants", "Key grants"), Entry("/audit", "Audit", Permission.AUDIT)),
    ),
    Section("Server", (Entry("/people", "People"), Entry("/settings", "Settings"))),
)
"""All of it. A page that is not here is reached from one that is."""


async def navigation(visit: Visit) -> list[Section]:
    """Return what a person may open, with what waits there."""
    waiting = await _waiting(visit)
    sections = (
        Section(section.label, tuple(_counted(entry, waiting) for entry in section.entries if _may(visit, entry)))
        for section in SECTIONS
    )
    return [section for section in sections if section.entries]


def _may(visit: Visit, entry: Entry) -> bool:
    return roles.allowed(visit.who.role, entry.permission)


def _counted(entry: Entry, waiting: Mapping[str, int]) -> Entry:
    return dataclasses.replace(entry, count=waiting.get(entry.path, 0))


async def _waiting(visit: Visit) -> dict[str, int]:
    """Return what waits on which page: one query, for it is asked with every page."""
    counted = {
        "/": _for_me(visit),
        "/rollouts": rollout_tables.rollout.c.state.in_(records.FOR_A_PERSON),
        "/alerts": tables.alert.c.closed.is_(None),
        "/enrolment": tables.device.c.state == State.PENDING,
    }
    query = sa.select(*(sa.select(sa.func.count()).where(each).scalar_subquery() for each in counted.values()))
    async with visit.site.fleet.store.read() as connection:
        return dict(zip(counted, (await connection.execute(query)).one(), strict=True))


def _for_me(visit: Visit) -> sa.ColumnElement[bool]:
    """Return which approvals of others wait for this person."""
    approval = tables.approval.c
    if not roles.allowed(visit.who.role, Permission.WIPE):
        return sa.and_(approval.state == "asked", sa.false())
    return sa.and_(approval.state == "asked", approval.expires > visit.now, approval.asked_by != visit.who.id)
