"""The fleet's own numbers over time, and packages as rows that can be searched."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Go forward; what devices sent already can be searched too."""
    op.create_table(
        "fleet_sample",
        sa.Column("bucket", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("enrolled", sa.Integer(), nullable=False),
        sa.Column("online", sa.Integer(), nullable=False),
        sa.Column("attested", sa.Integer(), nullable=False),
        sa.Column("degraded", sa.Integer(), nullable=False),
        sa.Column("quarantined", sa.Integer(), nullable=False),
        sa.Column("alerts", sa.Integer(), nullable=False),
        sa.Column("keys_granted", sa.Integer(), nullable=False),
        sa.Column("keys_refused", sa.Integer(), nullable=False),
        sa.Column("integrity_failures", sa.BigInteger(), nullable=False),
        sa.Column("temperature_max", sa.Float(), nullable=True),
        sa.Column("load_max", sa.Float(), nullable=True),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("bucket", name=op.f("pk_fleet_sample")),
    )
    op.create_table(
        "package",
        sa.Column("id", _Serial, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=64), server_default="", nullable=False),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_package")),
        sa.UniqueConstraint("name", "kind", "version", "digest", name=op.f("uq_package_name_kind_version_digest")),
    )
    with op.batch_alter_table("package") as batch_op:
        batch_op.create_index("ix_package_digest", ["digest"], unique=False)
        batch_op.create_index("ix_package_kind", ["kind", "name", "version", "id"], unique=False)

    op.create_table(
        "package_member",
        sa.Column("package_id", sa.BigInteger(), nullable=False),
        sa.Column("set_digest", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("package_id", "set_digest", name=op.f("pk_package_member")),
    )
    with op.batch_alter_table("package_member") as batch_op:
        batch_op.create_index("ix_package_member_set", ["set_digest"], unique=False)

    with op.batch_alter_table("key_grant") as batch_op:
        batch_op.create_index("ix_key_grant_created", ["created"], unique=False)
    _index_what_is_stored(op.get_bind())


def _index_what_is_stored(connection: sa.Connection) -> None:
    kept = sa.table("package_set", sa.column("digest"), sa.column("items"))
    package = sa.table("package", *(sa.column(name) for name in ("id", "kind", "name", "version", "digest")))
    member = sa.table("package_member", sa.column("package_id"), sa.column("set_digest"))
    known: dict[tuple[str, str, str, str], int] = {}
    for name in connection.execute(sa.select(kept.c.digest)).scalars().all():
        content = connection.execute(sa.select(kept.c["items"]).where(kept.c.digest == name)).scalar_one()
        rows = []
        for item in json.loads(bytes(content))["items"]:
            key = (item["kind"], item["name"], item["version"], item.get("digest") or "")
            if key not in known:
                known[key] = len(known) + 1
                values = dict(zip(("kind", "name", "version", "digest"), key, strict=True))
                connection.execute(sa.insert(package).values(id=known[key], **values))
            rows.append({"package_id": known[key], "set_digest": name})
        if rows:
            connection.execute(sa.insert(member), rows)
    if known and connection.dialect.name == "postgresql":
        connection.execute(
            sa.text("SELECT setval(pg_get_serial_sequence('package', 'id'), :last)"), {"last": len(known)}
        )


def downgrade() -> None:
    """Go back."""
    with op.batch_alter_table("key_grant") as batch_op:
        batch_op.drop_index("ix_key_grant_created")
    op.drop_table("package_member")
    op.drop_table("package")
    op.drop_table("fleet_sample")
