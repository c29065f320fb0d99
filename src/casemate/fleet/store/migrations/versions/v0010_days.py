"""On PostgreSQL what devices were like is kept in days, each of which can be dropped (`store.partitions`)."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_KEYS = "ADD CONSTRAINT pk_health_rollup PRIMARY KEY (device_id, bucket)"
_INDEX = "CREATE INDEX ix_health_rollup_bucket ON health_rollup (bucket)"
_UP = (
    "CREATE SCHEMA IF NOT EXISTS casemate_days",
    "ALTER TABLE health_rollup RENAME TO health_rollup_whole",
    "ALTER TABLE health_rollup_whole DROP CONSTRAINT pk_health_rollup",
    "DROP INDEX ix_health_rollup_bucket",
    "CREATE TABLE health_rollup (LIKE health_rollup_whole INCLUDING DEFAULTS) PARTITION BY RANGE (bucket)",
    f"ALTER TABLE health_rollup {_KEYS}",
    _INDEX,
    "CREATE TABLE casemate_days.health_rollup_rest PARTITION OF health_rollup DEFAULT",
    "INSERT INTO health_rollup SELECT * FROM health_rollup_whole",
    "DROP TABLE health_rollup_whole",
)
_DOWN = (
    "CREATE TABLE health_rollup_whole (LIKE health_rollup INCLUDING DEFAULTS)",
    "INSERT INTO health_rollup_whole SELECT * FROM health_rollup",
    "DROP TABLE health_rollup CASCADE",
    "DROP SCHEMA casemate_days",
    "ALTER TABLE health_rollup_whole RENAME TO health_rollup",
    f"ALTER TABLE health_rollup {_KEYS}",
    _INDEX,
)


def upgrade() -> None:
    """Go forward."""
    _run(_UP)


def downgrade() -> None:
    """Go back."""
    _run(_DOWN)


def _run(statements: tuple[str, ...]) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for each in statements:
            op.execute(each)
