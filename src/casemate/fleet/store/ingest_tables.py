"""The table that makes a batch of check-ins from the bus count once: `fleet.ingest` fills it."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, String

from casemate.fleet.store.tables import table

ingest_batch = table(
    "ingest_batch",
    Column("name", String(32), primary_key=True),
    Column("taken", Float, nullable=False),
    Index("ix_ingest_batch_taken", "taken"),
)
