"""What devices say about generations: kept as the newest word of each, and counted in the rollout it answers."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.store import Store, rollout_tables
from casemate.formats.director import VerifiedWord

_rollout, _one = rollout_tables.rollout.c, rollout_tables.rollout_device.c
_WAITING: Final = ("offered", "taken")
_MAY_FAIL: Final = ("offered", "taken", "installed", "good")


async def take(connection: AsyncConnection, store: Store, verified: VerifiedWord, raw: bytes, now: float) -> None:
    """Keep a device's word; a device that says it failed has failed, one that says good begins its soak."""
    word = verified.word
    await _keep(connection, store, verified, raw, now)
    mine = sa.select(_rollout.id).where(_rollout.content == word.content, _rollout.state.in_(("running", "paused")))
    rows = sa.and_(_one.device_id == word.device, _one.rollout_id.in_(mine))
    change = sa.update(rollout_tables.rollout_device)
    if word.outcome == "good":
        await connection.execute(
            change.where(rows, _one.state.in_(_WAITING)).values(state="installed", installed=now, changed=now, why="")
        )
    else:
        await connection.execute(
            change.where(rows, _one.state.in_(_MAY_FAIL)).values(
                state="failed", changed=now, why=word.why or "it said no more"
            )
        )


async def handed(connection: AsyncConnection, rollout: str, device: str, now: float) -> bool:
    """Note that *device* is handed the pick of *rollout*: from here on its silence counts. False: it is not offered."""
    mine = sa.and_(_one.rollout_id == rollout, _one.device_id == device, _one.state == "offered")
    change = sa.update(rollout_tables.rollout_device).where(mine).values(state="taken", changed=now)
    return bool((await connection.execute(change)).rowcount)


async def _keep(connection: AsyncConnection, store: Store, verified: VerifiedWord, raw: bytes, now: float) -> None:
    word = verified.word
    insert = postgresql.insert if store.is_postgresql else sqlite.insert
    values: dict[str, Any] = {
        "content": word.content,
        "outcome": word.outcome,
        "why": word.why,
        "tries": word.tries,
        "hardware": word.hardware,
        "first_token_ms": word.first_token_ms,
        "memory_mib": word.memory_mib,
        "envelope": raw,
        "changed": now,
    }
    statement: Any = insert(rollout_tables.device_generation).values(device_id=word.device, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["device_id"], set_=values))
