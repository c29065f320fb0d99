"""Alembic's side: how to run a migration, and the migrations."""
