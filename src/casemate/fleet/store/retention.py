"""What has grown old is deleted a slice at a time, so that no check-in waits for long."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from casemate.fleet.store.database import Store

SLICE: Final = 1_000
"""Rows looked at in one transaction."""


async def forget(store: Store, table: sa.Table, old: float, *needless: sa.ColumnElement[bool]) -> int:
    """Delete rows of *table* that were created before *old* and are *needless*; returns how many went.

    Its rows are numbered (`id`) as they are made (`created`), so the walk is along the numbers and ends where the young
    ones begin.

    Raises:
        OperationError: the database does not answer.

    """
    row, after, gone = table.c, 0, 0
    while True:
        query = sa.select(row.id, row.created).where(row.id > after).order_by(row.id).limit(SLICE)
        async with store.read() as connection:
            seen = (await connection.execute(query)).all()
        if not any(one.created < old for one in seen):
            return gone
        within = row.id.between(seen[0].id, seen[-1].id)
        async with store.write() as connection:
            done = await connection.execute(sa.delete(table).where(within, row.created < old, *needless))
        gone, after = gone + done.rowcount, seen[-1].id
