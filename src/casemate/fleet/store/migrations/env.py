"""Alembic's entry: runs the migrations on the connection that `store.schema` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from casemate.fleet.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter: the table is copied
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
