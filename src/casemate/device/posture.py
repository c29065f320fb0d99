"""What is weaker than it should be, decided from facts; each weakness comes with the command that repairs it.

`gather` reads the machine, `weaknesses` is pure. `casemate status` shows the list as `degraded`, `casemate doctor`
explains it.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from casemate import keystores
from casemate.device.home import Home, owner_of
from casemate.device.sandbox import landlock
from casemate.device.sandbox.plan import find_bwrap
from casemate.errors import CasemateError, HostError


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was observed. `assurance` is the keystore's level; sizes are bytes."""

    separate_uids: bool
    assurance: str
    assurance_reasons: tuple[str, ...]
    recovery: bool
    bubblewrap: bool
    landlock_abi: int
    memlock: int
    swap: bool
    disk_free: int
    key_file: str
    """Where the key of app `default` still lies in plain; empty when it does not."""
    needs_triage: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Weakness:
    """One row of `degraded`."""

    code: str
    what: str
    fix: str


@dataclasses.dataclass(frozen=True)
class _Rule:
    code: str
    holds: Callable[[Facts], bool]
    what: Callable[[Facts], str]
    fix: str


_MIN_DISK: Final = 256 * 1024 * 1024
_LANDLOCK_NET: Final = 4
RULES: Final = (
    _Rule(
        "needs-triage",
        lambda f: bool(f.needs_triage),
        lambda f: f"{', '.join(f.needs_triage)} kept failing and stays down",
        "casemate journal show",
    ),
    _Rule(
        "no-bubblewrap", lambda f: not f.bubblewrap, lambda _: "bubblewrap is not installed", "apt install bubblewrap"
    ),
    _Rule(
        "no-landlock",
        lambda f: f.landlock_abi < 1,
        lambda _: "the kernel has no Landlock: engines will not start",
        "boot a kernel >= 5.13 with lsm=landlock,...",
    ),
    _Rule(
        "old-landlock",
        lambda f: 1 <= f.landlock_abi < _LANDLOCK_NET,
        lambda f: f"Landlock ABI {f.landlock_abi} has no network rules (namespaces and seccomp still block)",
        "boot a kernel >= 6.7",
    ),
    _Rule(
        "shared-uid",
        lambda f: not f.separate_uids,
        lambda _: (
            "every process shares your uid: one that is taken over can signal the others and read an engine's memory"
        ),
        "sudo casemate service install",
    ),
    _Rule(
        "weak-keystore",
        lambda f: f.assurance == "L0",
        lambda f: (
            "the key lies where the models lie"
            + (f" ({'; '.join(f.assurance_reasons)})" if f.assurance_reasons else "")
        ),
        "casemate keystore rotate --to passphrase",
    ),
    _Rule(
        "no-recovery",
        lambda f: not f.recovery,
        lambda _: "no recovery key: losing the passphrase or key file loses the models",
        "casemate keystore add-recovery",
    ),
    _Rule(
        "memlock",
        lambda f: 0 <= f.memlock < 1 << 20,
        lambda f: f"only {f.memlock // 1024} KiB may be locked in memory: keys could reach swap",
        "ulimit -l unlimited, or run as a service",
    ),
    _Rule(
        "swap",
        lambda f: f.swap,
        lambda _: "swap is on: pages of a model or prompt could reach the disk",
        "swapoff -a, or encrypt swap",
    ),
    _Rule(
        "disk",
        lambda f: f.disk_free < _MIN_DISK,
        lambda f: f"only {f.disk_free >> 20} MiB free in the home",
        "free some space",
    ),
    _Rule(
        "key-in-file",
        lambda f: bool(f.key_file),
        lambda f: f"the key of app 'default' still lies in {f.key_file}",
        "store it in your app, then delete that file",
    ),
)


def weaknesses(facts: Facts) -> list[Weakness]:
    """Return every rule that holds, gravest first."""
    return [Weakness(rule.code, rule.what(facts), rule.fix) for rule in RULES if rule.holds(facts)]


def gather(home: Path, status: Mapping[str, Any]) -> Facts:
    """Observe the machine; *status* is the agent's answer, or what is known without one."""
    level, reasons, recovery = _keystore(home, status.get("assurance") or {})
    key_file = home / "run" / "default-app.key"
    triage = tuple(m["name"] for m in status.get("models", []) if m.get("state") == "needs triage")
    return Facts(
        separate_uids=owner_of("engine") is not None,
        assurance=level,
        assurance_reasons=reasons,
        recovery=recovery,
        bubblewrap=_has_bubblewrap(),
        landlock_abi=landlock.abi(),
        memlock=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        swap=_swap_is_on(),
        disk_free=shutil.disk_usage(home).free if home.exists() else shutil.disk_usage("/").free,
        key_file=str(key_file) if os.path.exists(key_file) else "",  # noqa: PTH110 - may be unreadable
        needs_triage=triage,
    )


def _keystore(home: Path, told: Mapping[str, Any]) -> tuple[str, tuple[str, ...], bool]:
    """Return level, reasons and whether there is a recovery code.

    A running device *told* the level it found when it started. Its keystore's file, where it may be read, says whether
    there is a recovery code now, and everything when no device runs.
    """
    level, reasons = str(told.get("level", "L0")), tuple(told.get("reasons", ()))
    try:
        found = keystores.describe(Home(home))
    except (CasemateError, OSError):
        return level, reasons, bool(told.get("recovery", False))
    return (level, reasons, found.recovery) if told else (found.level, found.reasons, found.recovery)


def _has_bubblewrap() -> bool:
    """Whether engines would find it; $PATH is not asked, and they do not ask it."""
    try:
        find_bwrap()
    except HostError:
        return False
    return True


def _swap_is_on() -> bool:
    try:
        return len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) > 1
    except OSError:
        return True  # cannot tell: say the worse
