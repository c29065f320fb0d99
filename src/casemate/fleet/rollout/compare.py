"""Latency and memory of devices with a release against those without, per hardware model.

Both numbers are what the device's own health gate measured when it took what it runs: for the control group that is
the generation before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.rollout.ranks import Comparison
from casemate.fleet.rollout.ranks import compare as ranked
from casemate.fleet.store import rollout_tables

MOST: Final = 2000
"""Values of one side that are compared: more would tell no more."""
METRICS: Final = ("first_token_ms", "memory_mib")
_one, _word = rollout_tables.rollout_device.c, rollout_tables.device_generation.c


async def groups(connection: AsyncConnection, rollout: str, content: str) -> dict[str, Comparison | None]:
    """Return each hardware model's comparisons by "model metric"; None where there are too few values."""
    treated = await _values(
        connection, sa.and_(_one.rollout_id == rollout, _one.state.in_(("installed", "good")), _word.content == content)
    )
    control = await _values(connection, sa.and_(_one.rollout_id == rollout, _one.state == "control"))
    found: dict[str, Comparison | None] = {}
    for (model, metric), values in sorted(treated.items()):
        found[f"{model} {metric}".strip()] = ranked(values, control.get((model, metric), ()))
    return found


async def _values(connection: AsyncConnection, which: sa.ColumnElement[bool]) -> dict[tuple[str, str], Sequence[float]]:
    joined = sa.join(rollout_tables.rollout_device, rollout_tables.device_generation, _word.device_id == _one.device_id)
    query = sa.select(_word.hardware, *(_word[name] for name in METRICS)).select_from(joined).where(which)
    found: dict[tuple[str, str], list[float]] = {}
    for row in await connection.execute(query.order_by(_one.device_id).limit(MOST)):
        for metric in METRICS:
            value = getattr(row, metric)
            if value is not None:
                found.setdefault((row.hardware, metric), []).append(value)
    return {key: tuple(values) for key, values in found.items()}
