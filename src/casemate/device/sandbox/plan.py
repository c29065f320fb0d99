"""The command line that puts one Python module into its own namespaces, and the start of that process.

As an ordinary user the command is bubblewrap itself. As root it is `python -m casemate.device.sandbox` (see
`__main__`), which drops to the engine's own uid and then becomes the same bubblewrap: nothing of the engine ever runs
as root. Either way the process sees /usr and the interpreter read-only, an empty /proc of its own, a 64 KiB /tmp,
no network device, no variable of the caller, and the descriptors of the plan.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import casemate
from casemate.errors import HostError

INSIDE_ID: Final = 65534
_PRIVATE_TMP_BYTES: Final = 64 * 1024
_USR_LINKS: Final = ("/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32")
_COVERED: Final = ("/usr", *_USR_LINKS)
_LONGEST_CHAIN: Final = 16
_HINT_BWRAP: Final = "apt install bubblewrap"


@dataclasses.dataclass(frozen=True)
class SandboxPlan:
    """What runs inside: a module, its arguments, the descriptors it inherits (names become variables), who it is.

    *fds* maps a variable name to a descriptor number; the caller passes the same numbers to `Popen(pass_fds=...)`.
    *uid* and *gid* are what root drops to; None keeps the caller's (and root is refused).
    """

    module: str
    arguments: tuple[str, ...] = ()
    fds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    uid: int | None = None
    gid: int | None = None


def engine_command(plan: SandboxPlan) -> list[str]:
    """Return the argv that starts *plan*; run it with exactly `pass_fds=plan.fds.values()`.

    Raises:
        HostError: bubblewrap is not installed, or root named no identity to drop to.

    """
    bwrap = find_bwrap()
    if os.geteuid() != 0:
        return bubblewrap_command(plan, bwrap, {tree: tree for tree in interpreter_trees()})
    if not plan.uid or not plan.gid:
        raise HostError("root does not run an engine as root", hint="name the uid and gid it drops to")
    order = json.dumps({**dataclasses.asdict(plan), "bwrap": bwrap})
    return [sys.executable, "-I", "-m", "casemate.device.sandbox", order]


def spawn(plan: SandboxPlan, *, stderr: int | None = None) -> subprocess.Popen[bytes]:
    """Start *plan* with no input and no output but its descriptors.

    Call it from a thread that lives as long as the engine should: the kernel sends the parent-death signal when the
    *thread* that forked ends.

    Raises:
        HostError: as `engine_command`.

    """
    return subprocess.Popen(
        engine_command(plan),
        pass_fds=tuple(plan.fds.values()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        process_group=0,  # Ctrl-C is for the agent: it stops engines in its own order
    )


def find_bwrap() -> str:
    """Return the path of bubblewrap, from the system's own directories only.

    Raises:
        HostError: it is not installed.

    """
    for directory in ("/usr/bin", "/usr/local/bin", "/bin"):
        path = f"{directory}/bwrap"
        if os.access(path, os.X_OK):
            return path
    raise HostError("bubblewrap is missing: the engine has no namespaces to run in", hint=_HINT_BWRAP)


def interpreter_trees() -> list[str]:
    """Return the directories outside /usr that hold the interpreter, its packages and this package, outermost only."""
    wanted = {
        sys.prefix,
        sys.base_prefix,
        os.path.realpath(sys.base_prefix),
        str(Path(sys.executable).resolve().parent),
        str(Path(casemate.__file__).resolve().parent),
    }
    outside = sorted(path for path in wanted if not any(_is_under(path, covered) for covered in _COVERED))
    return [path for path in outside if not any(_is_under(path, other) for other in outside if other != path)]


def interpreter_links(trees: Collection[str]) -> list[tuple[str, str]]:
    """Return (target, link) for each link between `sys.executable` and the real file that no tree of *trees* holds."""
    links: list[tuple[str, str]] = []
    path = Path(sys.executable)
    while path.is_symlink() and len(links) < _LONGEST_CHAIN:
        if not any(_is_under(str(path), tree) for tree in (*trees, *_COVERED)):
            links.append((str(path.resolve()), str(path)))
        path = path.parent / path.readlink()
    return links


def _is_under(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def bubblewrap_command(plan: SandboxPlan, bwrap: str, trees: Mapping[str, str]) -> list[str]:
    """Return bubblewrap's argv for *plan*; *trees* maps each interpreter directory to where it can be reached now."""
    inside = str(INSIDE_ID)
    command = [bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--uid", inside, "--gid", inside]
    command += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "engine", "--chdir", "/"]
    command += ["--ro-bind", "/usr", "/usr", *_usr_links(), "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", str(_PRIVATE_TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108 - private
    for tree, reachable in trees.items():  # after /tmp: a checkout may lie below it
        command += ["--ro-bind", reachable, tree]
    for target, link in interpreter_links(trees):
        command += ["--symlink", target, link]
    command += ["--remount-ro", "/dev", "--remount-ro", "/"]
    command += ["--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "GGML_NO_BACKTRACE", "1"]
    for name, value in plan.environment.items():
        command += ["--setenv", name, value]
    for name, fd in plan.fds.items():
        command += ["--setenv", name, str(fd)]
    return [*command, "--", sys.executable, "-I", "-m", plan.module, *plan.arguments]


def _usr_links() -> list[str]:
    """Return the options that rebuild /lib and its like: links on a merged-/usr system, binds elsewhere."""
    options: list[str] = []
    for name in _USR_LINKS:
        path = Path(name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            options += ["--ro-bind", name, name]
    return options
