"""A change knows the transaction that made it: servers read on without missing one that committed late."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    with op.batch_alter_table("change") as batch_op:
        batch_op.add_column(sa.Column("xact", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.create_index("ix_change_xact", ["xact"], unique=False)


def downgrade() -> None:
    """Go back."""
    with op.batch_alter_table("change") as batch_op:
        batch_op.drop_index("ix_change_xact")
        batch_op.drop_column("xact")
