"""Try each defence for real: build the sandbox, seal a memory file, read the log. Reports; changes nothing."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from casemate.device import admin, posture
from casemate.device.home import Home, owner_of
from casemate.device.sandbox import host, landlock
from casemate.errors import CasemateError


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report: `state` is ok, weak (works, less safe) or missing (engines will not start)."""

    id: str
    state: str
    what: str
    fix: str = ""

    def row(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


def examine(home: Path) -> list[Check]:
    """Run every check; a check that breaks is `missing`, never skipped."""
    checks: list[Check] = []
    for probe in (_python, _layers, _landlock, _memory_file, _home, _journal):
        try:
            checks += probe(home)
        except CasemateError as error:
            checks.append(Check(probe.__name__.strip("_"), "missing", error.message, error.hint))
        except OSError as error:
            checks.append(Check(probe.__name__.strip("_"), "missing", str(error)))
    return [*checks, *_weaknesses(home)]


def _python(home: Path) -> list[Check]:
    del home
    return [Check("python", "ok", f"Python {sys.version.split()[0]}, {os.uname().machine}, Linux {os.uname().release}")]


def _layers(home: Path) -> list[Check]:
    del home
    owner = owner_of("engine")
    missing = host.missing_layers(owner.uid, owner.gid) if owner else host.missing_layers()
    if not missing:
        return [Check("sandbox", "ok", "namespaces, Landlock and seccomp are all there")]
    return [Check("sandbox", "missing", error.message, error.hint) for error in missing]


def _landlock(home: Path) -> list[Check]:
    del home
    return [Check("landlock", "ok", f"Landlock ABI {landlock.abi()}")] if landlock.abi() >= 1 else []


def _memory_file(home: Path) -> list[Check]:
    del home
    fd = os.memfd_create("doctor", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.close(fd)
    return [Check("memory-file", "ok", "sealed memory files work")]


def _home(home: Path) -> list[Check]:
    if not (home / "home.json").exists():
        return [Check("home", "ok", f"no home yet at {home}: `casemate up` makes it")]
    Home(home).open()
    return [Check("home", "ok", f"home {home}")]


def _journal(home: Path) -> list[Check]:
    from casemate.device.journal import LogFiles, verify  # noqa: PLC0415 - only this check needs the log

    if not (home / "journal" / "checkpoint").exists():
        return []
    result = verify(LogFiles(home / "journal"))
    return [Check("journal", "ok", f"the journal verifies: {result.size} entries")]


def _weaknesses(home: Path) -> list[Check]:
    if not (home / "home.json").exists():
        return []
    try:
        status = admin.ask(home / "run", "status")
    except CasemateError:
        status = {}
    facts = posture.gather(home, status)
    rows = posture.weaknesses(facts)
    if not status:  # the keystore's level is only known while it is open
        rows = [row for row in rows if row.code not in {"weak-keystore", "no-recovery"}]
    return [Check(row.code, "weak", row.what, row.fix) for row in rows]
