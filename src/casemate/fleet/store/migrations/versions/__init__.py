"""The history of the schema, oldest first; Alembic runs it (see `store.schema`)."""
