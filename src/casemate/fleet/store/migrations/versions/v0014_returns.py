"""Devices whose certificate has ended and that wait for a person's yes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "device_return",
        sa.Column("device_id", sa.String(36), nullable=False),
        sa.Column("asked", sa.Float(), nullable=False),
        sa.Column("seen", sa.Float(), nullable=False),
        sa.Column("approved", sa.Float(), nullable=True),
        sa.Column("approved_by", sa.String(128), nullable=True),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name="fk_device_return_device_id"),
        sa.PrimaryKeyConstraint("device_id", name="pk_device_return"),
    )


def downgrade() -> None:
    """Go back."""
    op.drop_table("device_return")
