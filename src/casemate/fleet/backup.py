"""A fleet in one file, and back: keys, certificates, settings, and every table as lines of JSON.

The tables are written the same from SQLite and from PostgreSQL and can be restored into either, so this is also the way
from one to the other. The file holds the fleet's private keys in clear: it is made for its owner's eyes only (0600).

What happened after the backup is gone when it is restored. Two things are made up for: numbers of commands continue far
above the old ones (a device obeys no number twice), and what a device reports comes back by itself. Certificates issued
since are unknown, and revocations made since must be made again.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.clock import Clock
from casemate.errors import BusyError, OperationError, UntrustedDataError
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome, Settings
from casemate.fleet.store import Store, schema, tables
from casemate.fleet.store.database import sqlite_url
from casemate.formats.decoding import MALFORMED

FORMAT: Final = 1
SEQUENCE_GAP: Final = 1_000_000
_MANIFEST: Final = "manifest.json"
_FILES: Final = re.compile(r"(settings\.json|(ca|keys)/[a-z0-9_-]+\.[a-z]+)\Z")
_TABLE: Final = re.compile(r"tables/([a-z_]+)\.jsonl\Z")
_CHUNK: Final = 500
_MAX_FILE: Final = 1 << 20
_PIECE: Final = 1 << 20


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    fleet: str
    schema: str
    made: str
    files: dict[str, str]
    """Name -> SHA-256 (hex) of everything else."""


async def write(fleet: Fleet, out: Path, actor: str) -> dict[str, Any]:
    """Write a backup of *fleet* to *out*; a running server goes on. Returns its SHA-256 and the number of rows.

    Raises:
        BusyError: *out* exists.
        OperationError: it cannot be written.

    """
    if out.exists():  # noqa: ASYNC240 - a command of one person: nobody else waits in this loop
        raise BusyError(f"{out} exists", hint="name another file")
    now, rows = fleet.clock.wall(), 0
    async with fleet.store.write() as connection:  # noted before the snapshot, so that the backup says so itself
        await fleet.audit.append(connection, Act(actor, "fleet.backup", detail={"file": out.name}), now)
    part = out.with_name(f".{out.name}.part")
    digests: dict[str, str] = {}
    try:
        with part.open("xb") as file:
            part.chmod(0o600)
            with tarfile.open(fileobj=file, mode="w:gz") as archive, tempfile.TemporaryFile() as scratch:
                for path in _own_files(fleet.home):
                    _add(archive, str(path.relative_to(fleet.home.path)), io.BytesIO(fleet.home.read(path)), digests)
                async with fleet.store.snapshot() as connection:
                    for table in tables.metadata.sorted_tables:
                        scratch.seek(0)
                        scratch.truncate()
                        async for line in _lines(connection, table):
                            scratch.write(line)
                            rows += 1
                        _add(archive, f"tables/{table.name}.jsonl", scratch, digests)
                made = dt.datetime.fromtimestamp(now, dt.UTC).isoformat(timespec="seconds")
                manifest = _Manifest(FORMAT, fleet.settings.fleet, schema.newest(), made, digests)
                _add(archive, _MANIFEST, io.BytesIO(msgspec.json.encode(manifest)), {})
        part.rename(out)
    except OSError as error:
        raise OperationError(f"cannot write {out}: {error.strerror}", hint="free space, then try again") from error
    finally:
        part.unlink(missing_ok=True)
    return {"file": str(out), "rows": rows, "sha256": _digest_of(out)}


async def restore(source: Path, home: FleetHome, clock: Clock, database: str | None, actor: str) -> dict[str, Any]:
    """Make the fleet in *source* again, in the empty directory of *home* and an empty database.

    Raises:
        UntrustedDataError: `backup-format` or `backup-digest`: nothing was written.
        BusyError: the database holds something.

    """
    with tempfile.TemporaryDirectory() as scratch:
        manifest = _unpack(source, Path(scratch))
        settings = msgspec.json.decode((Path(scratch) / "settings.json").read_bytes(), type=Settings)
        home.create()
        chosen = database or (
            sqlite_url(home.path / "fleet.db") if settings.database.startswith("sqlite") else settings.database
        )
        rows = await _fill(Store(chosen), Path(scratch))
        for name in manifest.files:
            if _FILES.match(name) and name != "settings.json":
                mode = 0o644 if name.endswith(".pem") else 0o600
                home.write(home.path / name, (Path(scratch) / name).read_bytes(), mode=mode)
        home.save_settings(msgspec.structs.replace(settings, database=chosen))
    fleet = Fleet.open(home, clock)
    try:
        async with fleet.store.write() as connection:
            act = Act(actor, "fleet.restore", detail={"made": manifest.made, "fleet": manifest.fleet})
            await fleet.audit.append(connection, act, clock.wall())
    finally:
        await fleet.store.close()
    return {"fleet": manifest.fleet, "made": manifest.made, "rows": rows}


def _own_files(home: FleetHome) -> Iterator[Path]:
    for path in sorted(home.path.rglob("*")):
        if path.is_file() and not path.is_symlink() and _FILES.match(str(path.relative_to(home.path))):
            yield path


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes], digests: dict[str, str]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = file.seek(0, io.SEEK_END), 0o600
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    digests[name] = digest.hexdigest()
    file.seek(0)
    archive.addfile(entry, file)


async def _lines(connection: AsyncConnection, table: sa.Table) -> AsyncIterator[bytes]:
    result = await connection.stream(sa.select(table))
    async for row in result.mappings():
        yield json.dumps({key: _plain(value) for key, value in row.items()}, separators=(",", ":")).encode() + b"\n"


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes | memoryview) else value


def _unpack(source: Path, target: Path) -> _Manifest:
    """Write the members of *source* below *target*: only names a backup has, each once, and each as its digest says."""
    digests: dict[str, str] = {}
    manifest: _Manifest | None = None
    try:
        with tarfile.open(source, "r:gz") as archive:
            for entry in archive:
                held = archive.extractfile(entry) if entry.isreg() else None
                known = entry.name == _MANIFEST or _FILES.match(entry.name) or _TABLE.match(entry.name)
                if held is None or not known or entry.name in digests or manifest:
                    raise UntrustedDataError(f"{entry.name!r} does not belong in a backup", check="backup-format")
                if entry.name == _MANIFEST:
                    manifest = msgspec.json.decode(held.read(_MAX_FILE), type=_Manifest)
                    continue
                path = target / entry.name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with path.open("xb") as file:
                    while piece := held.read(_PIECE):
                        file.write(piece)
                digests[entry.name] = _digest_of(path)
    except (tarfile.TarError, EOFError, OSError, *MALFORMED) as error:
        raise UntrustedDataError(f"{source} is no backup of a fleet: {error}", check="backup-format") from error
    if manifest is None or manifest.format != FORMAT or "settings.json" not in digests:
        raise UntrustedDataError(f"{source} is no whole backup of a fleet", check="backup-format")
    if manifest.files != digests:
        raise UntrustedDataError(f"{source} is damaged", check="backup-digest", hint="use another copy")
    if manifest.schema != schema.newest():
        raise OperationError(
            f"{source} was made by another version (schema {manifest.schema})",
            hint="restore it with that version, then update",
        )
    return manifest


async def _fill(store: Store, source: Path) -> int:
    rows = 0
    try:
        if await schema.revision(store) is not None:
            raise BusyError("the database is not empty", hint="give an empty one: --database URL")
        await schema.upgrade(store)
        async with store.write() as connection:
            for table in tables.metadata.sorted_tables:
                with (source / "tables" / f"{table.name}.jsonl").open("rb") as file:
                    rows += await _load(connection, table, file)
                await _continue_numbers(connection, store, table)
            # numbers of transactions are the old database's: here they would lie in the future, and be news for ever
            await connection.execute(sa.update(tables.change).values(xact=0))
            device = tables.device
            gap = sa.update(device).values(command_sequence=device.c.command_sequence + SEQUENCE_GAP)
            await connection.execute(gap)
    except (OSError, ValueError, KeyError) as error:
        raise UntrustedDataError(f"a table of the backup is broken: {error}", check="backup-format") from error
    finally:
        await store.close()
    return rows


async def _load(connection: AsyncConnection, table: sa.Table, file: IO[bytes]) -> int:
    binary = {column.name for column in table.columns if isinstance(column.type, sa.LargeBinary)}
    count, chunk = 0, []
    for line in file:
        row = json.loads(line)
        chunk.append({key: base64.b64decode(value) if key in binary and value else value for key, value in row.items()})
        if len(chunk) == _CHUNK:
            await connection.execute(sa.insert(table), chunk)
            count, chunk = count + len(chunk), []
    if chunk:
        await connection.execute(sa.insert(table), chunk)
    return count + len(chunk)


async def _continue_numbers(connection: AsyncConnection, store: Store, table: sa.Table) -> None:
    """PostgreSQL counts ids in a sequence of its own, which does not see rows that bring theirs."""
    counted = table.autoincrement_column
    if store.is_postgresql and counted is not None and counted.autoincrement is True:
        newest = sa.select(sa.func.coalesce(sa.func.max(counted), 0) + 1).scalar_subquery()
        name = sa.func.pg_get_serial_sequence(table.name, counted.name)
        await connection.execute(sa.select(sa.func.setval(name, newest, sa.false())))


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
