"""What the fleet remembers: one schema for SQLite and PostgreSQL, one history of migrations."""

from casemate.fleet.store import desk, ingest_tables, retention, rollout_tables, tables, usage_tables
from casemate.fleet.store.database import Store

__all__ = ["Store", "desk", "ingest_tables", "retention", "rollout_tables", "tables", "usage_tables"]
