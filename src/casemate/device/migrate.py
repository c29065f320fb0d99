"""Bringing a home made by an older version forward, one schema at a time; never backward, never half.

A step is pure but for reading: it returns the new content of the files it changes. Everything else is done here:

    1  the originals and the new contents go to `.migration/`, synced                (a crash: nothing happened)
    2  `.migration/plan.json` appears                                                (from here on it will happen)
    3  the files are replaced one by one, home.json with its new schema last         (a crash: the next start repeats 3)
    4  `home_migrated` is journaled
    5  `.migration/` becomes `before-schema-<n>/`, which keeps the originals

To change the home's layout: raise `home.SCHEMA`, add a row to `STEPS`, and a test that runs it on a home of before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from casemate.clock import SystemClock
from casemate.device.home import SCHEMA, Home, Owner, require_known_schema, write_atomic
from casemate.device.record import record
from casemate.durable import sync_directory
from casemate.errors import ConfigError, NotFoundError, OperationError
from casemate.formats import event
from casemate.formats.decoding import MALFORMED

Step = Callable[[Path], Mapping[str, bytes | None]]
"""Given the home's path, return new contents by relative path; None removes the file. It must not write."""

STEPS: Final[Mapping[int, Step]] = {}
"""By the schema a step starts from. Empty: schema 1 is the first that was released."""

_WORK: Final = ".migration"
_PLAN: Final = "plan.json"
_IDENTITY: Final = "home.json"


class _Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: whether it had and will have content (in `old/` and `new/` under this row's number)."""

    path: str
    had: bool
    has: bool
    mode: int


class _Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`plan.json`."""

    before: int
    after: int
    changes: tuple[_Change, ...]


def bring_forward(home: Home, *, steps: Mapping[int, Step] = STEPS, target: int = SCHEMA) -> tuple[int, int] | None:
    """Bring *home* to schema *target*, finishing what a crash left; returns (before, after), None if there was nothing.

    Raises:
        ConfigError: the home is newer than *target*, or no step starts from its schema.
        BusyError: a device runs on it.
        OperationError: it cannot be written; it is as it was, or the next start goes on.

    """
    if not home.exists:
        return None
    before = home.identity().schema
    require_known_schema(before, target)
    if before == target and not (home.path / _WORK).exists():
        return None
    with home.lock():
        interrupted = _finish(home)
        for schema in range(home.identity().schema, target):
            if schema not in steps:
                raise ConfigError(
                    f"no step leads on from schema {schema}", hint="upgrade through the version before this one"
                )
            _prepare(home, schema, steps[schema])
            _finish(home)
    started = interrupted.before if interrupted else before
    return (started, target) if started != target else None


def _prepare(home: Home, schema: int, step: Step) -> None:
    """Points 1 and 2."""
    work = home.path / _WORK
    shutil.rmtree(work, ignore_errors=True)
    contents = {**step(home.path), _IDENTITY: _raised(home, schema + 1)}  # home.json last: it says the step is done
    try:
        for folder in (work, work / "old", work / "new"):
            folder.mkdir(mode=0o700)
        rows = [_stage(home, work, number, path, data) for number, (path, data) in enumerate(contents.items())]
        for folder in (work / "old", work / "new", work):
            sync_directory(folder)
    except OSError as error:
        raise OperationError(
            f"cannot prepare the migration: {error.strerror}", hint="free space on this disk"
        ) from error
    write_atomic(work / _PLAN, msgspec.json.encode(_Plan(schema, schema + 1, tuple(rows))))


def _stage(home: Home, work: Path, number: int, path: str, data: bytes | None) -> _Change:
    pure = PurePosixPath(path)
    assert not pure.is_absolute()
    assert ".." not in pure.parts
    target = home.path / path
    had = target.exists()
    if had:
        write_atomic(work / "old" / str(number), target.read_bytes())
    if data is not None:
        write_atomic(work / "new" / str(number), data)
    return _Change(path, had, data is not None, target.stat().st_mode & 0o777 if had else 0o600)


def _raised(home: Home, schema: int) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(home.identity(), schema=schema)) + b"\n"


def _finish(home: Home) -> _Plan | None:
    """Points 3 to 5, from wherever they stopped; returns the plan that was carried out."""
    work = home.path / _WORK
    try:
        plan = msgspec.json.decode((work / _PLAN).read_bytes(), type=_Plan)
    except FileNotFoundError:
        shutil.rmtree(work, ignore_errors=True)
        return None
    except MALFORMED as error:
        raise ConfigError(f"{work}/{_PLAN} is damaged: {error}", hint="restore the home from a backup") from error
    for number, change in enumerate(plan.changes):
        _carry_out(home, work, number, change)
    with contextlib.suppress(NotFoundError):  # without a keystore there is no journal yet
        record(home, event.home_migrated(before=plan.before, after=plan.after, now=SystemClock().wall()))
    kept = home.path / f"before-schema-{plan.after}"
    shutil.rmtree(kept, ignore_errors=True)
    work.rename(kept)
    sync_directory(home.path)
    return plan


def _carry_out(home: Home, work: Path, number: int, change: _Change) -> None:
    target = home.path / change.path
    if not change.has:
        target.unlink(missing_ok=True)
        return
    if not target.parent.exists():
        target.parent.mkdir(mode=0o700)
    place = target.parent.stat()
    owner = Owner(place.st_uid, place.st_gid) if os.geteuid() == 0 else None
    write_atomic(target, (work / "new" / str(number)).read_bytes(), mode=change.mode, owner=owner)
