"""Which of the sandbox's layers this host offers, found by trying each once (about 40 ms)."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Final

from casemate.device.sandbox import landlock, seccomp
from casemate.device.sandbox.plan import find_bwrap
from casemate.errors import HostError

_TRIAL_SECONDS: Final = 10.0
_SWITCHES: Final = (
    # file, value that forbids, value that allows
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
)


def missing_layers(uid: int | None = None, gid: int | None = None) -> list[HostError]:
    """Return one error per layer that a process of *uid* (None: the caller's) would have to run without."""
    faults = []
    for check in (functools.partial(_namespaces, uid, gid), _landlock, seccomp.library):
        try:
            check()
        except HostError as error:
            faults.append(error)
    return faults


def require_layers(uid: int | None = None, gid: int | None = None) -> None:
    """Do nothing when every layer is there.

    Raises:
        HostError: names the first missing layer and its fix.

    """
    for fault in missing_layers(uid, gid):
        raise fault


def _landlock() -> None:
    if landlock.abi() < 1:
        raise landlock.missing()


def _namespaces(uid: int | None, gid: int | None) -> None:
    bwrap = find_bwrap()
    trial = [bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--ro-bind", "/", "/", "--", "/bin/true"]
    groups = None if uid is None else ()
    try:
        done = subprocess.run(
            trial,
            capture_output=True,
            timeout=_TRIAL_SECONDS,
            check=False,
            cwd="/",
            user=uid,
            group=gid,
            extra_groups=groups,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(
            f"bubblewrap did not run: {error}", hint="reinstall it: apt install --reinstall bubblewrap"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise HostError(
            f"bubblewrap cannot make namespaces: {said[-1] if said else f'exit {done.returncode}'}",
            hint=_namespace_hint(),
        )


def _namespace_hint() -> str:
    for name, forbids, allows in _SWITCHES:
        try:
            value = Path("/proc/sys", name).read_text("ascii").strip()
        except OSError:
            continue
        if value == forbids:
            return f"sysctl -w {name.replace('/', '.')}={allows}"
    return "allow user namespaces: outside a container, or in one started with a seccomp profile that permits unshare"
