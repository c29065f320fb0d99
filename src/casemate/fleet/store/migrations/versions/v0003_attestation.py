"""Who may vouch for a TPM, a TPM's endorsement key, and the keys of models that only attested devices get."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "tpm_maker",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("software", sa.Boolean(), server_default="0", nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_tpm_maker")),
    )
    op.create_table(
        "model_key",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("min_assurance", sa.String(length=4), nullable=False),
        sa.Column("lease_s", sa.Integer(), nullable=False),
        sa.Column("licence_ends", sa.Float(), nullable=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_model_key")),
    )
    with op.batch_alter_table("tpm_identity") as batch_op:
        batch_op.add_column(sa.Column("ek_public", sa.LargeBinary(), nullable=False))


def downgrade() -> None:
    """Go back."""
    with op.batch_alter_table("tpm_identity") as batch_op:
        batch_op.drop_column("ek_public")
    op.drop_table("model_key")
    op.drop_table("tpm_maker")
