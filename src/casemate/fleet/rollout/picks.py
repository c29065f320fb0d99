"""What the director tells each device: take the rollout's generation, keep what runs, or go back.

One row a device; whatever changes it counts its sequence up, and the device asks for it by that number at its next
check-in. What is handed out is decided then, from the rollout as it stands: a pick of a rollout that was stopped in
between is never delivered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.changes import note_change
from casemate.fleet.store import Store, rollout_tables
from casemate.fleet.store import tables as base

WOKEN: Final = 1000
"""Devices that are told at once; more hear of it when they call next, as they do anyway, and not all in one second."""
_CHUNK: Final = 500
_pick = rollout_tables.device_pick.c
_one = rollout_tables.rollout_device.c


class Action(StrEnum):
    """What a device shall do."""

    TAKE = "take"
    KEEP = "keep"
    BACK = "back"


async def tell(
    connection: AsyncConnection, store: Store, devices: Sequence[str], action: Action, *, rollout: str, now: float
) -> None:
    """Give *devices* a new pick."""
    insert = postgresql.insert if store.is_postgresql else sqlite.insert
    statement: Any = insert(rollout_tables.device_pick)
    statement = statement.on_conflict_do_update(
        index_elements=["device_id"],
        set_={
            "sequence": _pick.sequence + 1,
            "action": statement.excluded.action,
            "rollout_id": statement.excluded.rollout_id,
            "changed": statement.excluded.changed,
        },
    )
    for part in _chunks(devices):
        rows = [
            {"device_id": each, "sequence": 1, "action": str(action), "rollout_id": rollout, "changed": now}
            for each in part
        ]
        await connection.execute(statement, rows)
    for each in devices[:WOKEN]:
        await note_change(connection, each, "pick", now)


async def recall(connection: AsyncConnection, store: Store, rollout: str, states: Iterable[str], now: float) -> int:
    """Have the devices of *rollout* in one of *states* keep what they run; returns how many."""
    query = sa.select(_one.device_id).where(_one.rollout_id == rollout, _one.state.in_(list(states)))
    devices = [row.device_id for row in await connection.execute(query.order_by(_one.device_id))]
    await tell(connection, store, devices, Action.KEEP, rollout=rollout, now=now)
    return len(devices)


async def spread(connection: AsyncConnection, rollout: str, group: str | None, now: float) -> None:
    """Tell everybody whom a finished rollout was for to take it: who was held back, away, or joins later."""
    wanted = sa.select(base.device.c.id)
    if group is not None:
        wanted = wanted.where(base.device.c.group_name == group)
    others = sa.or_(_pick.rollout_id != rollout, _pick.action != str(Action.TAKE))
    await connection.execute(
        sa.update(rollout_tables.device_pick)
        .where(others, _pick.device_id.in_(wanted))
        .values(sequence=_pick.sequence + 1, action=str(Action.TAKE), rollout_id=rollout, changed=now)
    )


async def begin(connection: AsyncConnection, store: Store, device: str, group: str, now: float) -> None:
    """Give a device that has none its first pick: what the newest finished rollout for it says, or to keep."""
    rollout = rollout_tables.rollout.c
    meant = sa.or_(rollout.group_name.is_(None), rollout.group_name == group)
    query = sa.select(rollout.id).where(rollout.state == "done", meant).order_by(rollout.ended.desc()).limit(1)
    newest = (await connection.execute(query)).scalar_one_or_none()
    await tell(connection, store, [device], Action.TAKE if newest else Action.KEEP, rollout=newest or "", now=now)


def _chunks(devices: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(devices), _CHUNK):
        yield devices[start : start + _CHUNK]
