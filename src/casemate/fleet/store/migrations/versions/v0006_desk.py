"""Signing in by a provider, orders for many devices, answers that are given again, mail."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table(
        "oidc_identity",
        sa.Column("issuer", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("mapped", sa.Boolean(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("used", sa.Float(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name=op.f("fk_oidc_identity_user_id")),
        sa.PrimaryKeyConstraint("issuer", "subject", name=op.f("pk_oidc_identity")),
    )
    op.create_index("ix_oidc_identity_user", "oidc_identity", ["user_id"], unique=False)
    op.create_table(
        "idempotent_request",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_idempotent_request")),
    )
    op.create_index("ix_idempotent_request_expires", "idempotent_request", ["expires"], unique=False)
    op.create_table(
        "bulk",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("argument", sa.String(length=128), server_default="", nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("left_out", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=200), server_default="", nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.Column("confirmed", sa.Float(), nullable=True),
        sa.Column("confirmed_by", sa.String(length=128), nullable=True),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bulk")),
    )
    op.create_index("ix_bulk_state", "bulk", ["state", "created"], unique=False)
    op.create_table(
        "bulk_member",
        sa.Column("bulk_id", sa.String(length=32), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("device_id", sa.String(length=36), nullable=False),
        sa.Column("asset", sa.String(length=128), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.ForeignKeyConstraint(["bulk_id"], ["bulk.id"], name=op.f("fk_bulk_member_bulk_id")),
        sa.PrimaryKeyConstraint("bulk_id", "position", name=op.f("pk_bulk_member")),
    )
    op.create_index("ix_bulk_member_open", "bulk_member", ["bulk_id", "outcome", "position"], unique=False)
    op.create_table(
        "mail",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("about", sa.String(length=64), nullable=False),
        sa.Column("recipient", sa.String(length=254), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt", sa.Float(), server_default="0", nullable=False),
        sa.Column("sent", sa.Float(), nullable=True),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mail")),
        sa.UniqueConstraint("about", "recipient", name=op.f("uq_mail_about_recipient")),
    )
    op.create_index("ix_mail_unsent", "mail", ["sent", "next_attempt"], unique=False)
    op.create_table(
        "mail_recipient",
        sa.Column("address", sa.String(length=254), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_mail_recipient")),
    )
    with op.batch_alter_table("alert") as batch_op:
        batch_op.add_column(sa.Column("mailed", sa.Float(), nullable=True))
        batch_op.create_index("ix_alert_mailed", ["mailed"], unique=False)
    with op.batch_alter_table("user") as batch_op:
        batch_op.add_column(sa.Column("email", sa.String(length=254), nullable=True))
        batch_op.create_index("ix_user_email", ["email"], unique=True)
    with op.batch_alter_table("ceremony") as batch_op:
        batch_op.add_column(sa.Column("context", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """Go back."""
    with op.batch_alter_table("ceremony") as batch_op:
        batch_op.drop_column("context")
    with op.batch_alter_table("user") as batch_op:
        batch_op.drop_index("ix_user_email")
        batch_op.drop_column("email")
    with op.batch_alter_table("alert") as batch_op:
        batch_op.drop_index("ix_alert_mailed")
        batch_op.drop_column("mailed")
    for name in ("mail_recipient", "mail", "bulk_member", "bulk", "idempotent_request", "oidc_identity"):
        op.drop_table(name)
