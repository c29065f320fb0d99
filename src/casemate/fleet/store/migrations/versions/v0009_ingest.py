"""Batches of check-ins that came over the bus, each of which counts once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "ingest_batch",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("taken", sa.Float(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_ingest_batch")),
    )
    with op.batch_alter_table("ingest_batch") as batch_op:
        batch_op.create_index("ix_ingest_batch_taken", ["taken"], unique=False)


def downgrade() -> None:
    """Go back."""
    op.drop_table("ingest_batch")
