"""Which generation the evidence of a device proved, beside what it was judged to be."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward. Results of before name none: they are older than any word that is held against them."""
    op.add_column("attest_result", sa.Column("generation", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    """Go back."""
    op.drop_column("attest_result", "generation")
