"""Results of attestation: the one that counts, and the others for as long as somebody could still ask for them.

A device's newest result decides what it gets, its newest proven evidence holds the TPM's counters (the next quote must
be above them), and a key grant names the result it was decided by. These stay however old they are; what else is old
goes, evidence and all. What a result changed is in the audit log, which nothing here touches.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.store import Store, tables

SLICE: Final = 1_000
"""Results looked at in one transaction: no check-in waits for long."""

_result, _grant = tables.attest_result.c, tables.key_grant.c


async def newest(connection: AsyncConnection, device: str) -> sa.Row[Any] | None:
    """Return the newest judgement of *device*, without its evidence; None: it was never judged."""
    columns = (_result.id, _result.status, _result.assurance, _result.reasons, _result.policy)
    query: sa.Select[Any] = sa.select(*columns, _result.created, _result.expires).where(_result.device_id == device)
    row: sa.Row[Any] | None = (await connection.execute(query.order_by(_result.id.desc()).limit(1))).one_or_none()
    return row


async def prune(store: Store, now: float, kept: float) -> int:
    """Forget results older than *kept* seconds that nothing needs; returns how many went.

    Results are numbered as they are made, so the walk is along the numbers and ends where the young ones begin.

    Raises:
        OperationError: the database does not answer.

    """
    old, after, gone = now - kept, 0, 0
    while True:
        query = sa.select(_result.id, _result.created).where(_result.id > after).order_by(_result.id).limit(SLICE)
        async with store.read() as connection:
            seen = (await connection.execute(query)).all()
        if not any(row.created < old for row in seen):
            return gone
        within = _result.id.between(seen[0].id, seen[-1].id)
        over = sa.and_(_result.created < old, _result.expires < now)
        async with store.write() as connection:
            done = await connection.execute(sa.delete(tables.attest_result).where(within, over, *_needless()))
        gone, after = gone + done.rowcount, seen[-1].id


def _needless() -> tuple[sa.ColumnElement[bool], ...]:
    """Return what is true of a result that is not the newest, nor the newest proven one, and that no grant names."""
    newer = tables.attest_result.alias("newer")
    later = sa.and_(newer.c.device_id == _result.device_id, newer.c.id > _result.id)
    proven = sa.and_(later, newer.c.evidence.is_not(None))
    named = sa.and_(_grant.device_id == _result.device_id, _grant.result_id == _result.id)
    return (
        sa.or_(_exists(newer, proven), sa.and_(_result.evidence.is_(None), _exists(newer, later))),
        sa.not_(_exists(tables.key_grant, named)),
    )


def _exists(table: sa.FromClause, where: sa.ColumnElement[bool]) -> Any:
    return sa.select(sa.literal(1)).select_from(table).where(where).correlate(tables.attest_result).exists()
