"""Devices are ranked by how fast they answer, without reading what they signed."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_INDEX = "ix_device_generation_speed"


def upgrade() -> None:
    """Go forward."""
    op.create_index(_INDEX, "device_generation", ["device_id", "outcome", "first_token_ms"], unique=False)


def downgrade() -> None:
    """Go back."""
    op.drop_index(_INDEX, "device_generation")
