"""Results of attestation: the one that counts, and the others for as long as somebody could still ask for them.

A device's newest result decides what it gets, its newest proven evidence holds the TPM's counters (the next quote must
be above them), and a key grant names the result it was decided by. These stay however old they are; what else is old
goes, evidence and all. What a result changed is in the audit log, which nothing here touches.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.store import Store, retention, tables

_result, _grant = tables.attest_result.c, tables.key_grant.c


async def newest(connection: AsyncConnection, device: str) -> sa.Row[Any] | None:
    """Return the newest judgement of *device*, without its evidence; None: it was never judged."""
    columns = (_result.id, _result.status, _result.assurance, _result.reasons, _result.policy)
    query: sa.Select[Any] = sa.select(*columns, _result.created, _result.expires).where(_result.device_id == device)
    row: sa.Row[Any] | None = (await connection.execute(query.order_by(_result.id.desc()).limit(1))).one_or_none()
    return row


async def prune(store: Store, now: float, kept: float) -> int:
    """Forget results older than *kept* seconds that nothing needs; returns how many went.

    Raises:
        OperationError: the database does not answer.

    """
    return await retention.forget(store, tables.attest_result, now - kept, _result.expires < now, *_needless())


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
