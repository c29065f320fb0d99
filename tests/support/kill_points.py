"""Killing a program at its system calls: strace counts them, then ends it at the k-th of a kind, before it is done."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import casemate

CALLS = (
    "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "unlink",
    "unlinkat", "mkdir", "mkdirat", "rmdir", "ftruncate", "fallocate", "chown", "fchown", "fchownat", "chmod",
    "fchmod", "fchmodat",
)  # fmt: skip
"""What changes a disk. Opening with O_CREAT does too: the call after it is one of these, so it is covered."""
KILLED = -9


def environment() -> dict[str, str]:
    source, tests = Path(casemate.__file__).parents[1], Path(__file__).parents[1]
    packages = [path for path in sys.path if path.endswith("-packages")]
    return {"PYTHONPATH": ":".join(map(str, (source, tests, *packages))), "PYTHONDONTWRITEBYTECODE": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-S", str(Path(__file__).with_name("generation_writer.py")), *arguments]


def strace(log: str, *options: str, arguments: tuple[str, ...]) -> int:
    """Run the writer under strace; returns how it ended. (With --seccomp-bpf strace 6.1 injects nothing.)"""
    run = subprocess.run(
        ["strace", "-f", "-qq", "-o", log, *options, *command(*arguments)],
        env=environment() | {"PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode in (0, KILLED, 128 + 9), run.stderr
    return run.returncode


def points(log: Path, *arguments: str) -> list[tuple[str, int]]:
    """Run the writer to its end; return every kill point: the call, and which of its kind."""
    assert strace(str(log), "-e", f"trace={','.join(CALLS)}", arguments=arguments) == 0
    seen: Counter[str] = Counter()
    found = []
    for line in log.read_text().splitlines():
        if match := re.match(r"\d+ +(\w+)\(", line):
            seen[match[1]] += 1
            found.append((match[1], seen[match[1]]))
    return found


def kill_at(call: str, k: int, *arguments: str) -> None:
    """Run the writer and end it at the k-th *call*."""
    inject = f"inject={call}:signal=KILL:when={k}"
    assert strace("/dev/null", "-e", f"trace={call}", "-e", inject, arguments=arguments) != 0
