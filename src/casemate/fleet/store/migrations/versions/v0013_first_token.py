"""How fast the fleet answers, beside how it was otherwise."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_COLUMNS = ("first_token_median", "first_token_p95")


def upgrade() -> None:
    """Go forward. What was sampled before knows nothing of it."""
    for name in _COLUMNS:
        op.add_column("fleet_sample", sa.Column(name, sa.Float(), nullable=True))


def downgrade() -> None:
    """Go back."""
    for name in _COLUMNS:
        op.drop_column("fleet_sample", name)
