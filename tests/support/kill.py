"""Killing a command at each of its durable steps: what the disk then holds is what the next start finds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from casemate.device import containers

DURABLE = (
    (containers, "write_all"), (containers, "sync_directory"), (os, "fsync"), (os, "link"), (Path, "replace"),
    (Path, "unlink"),
)  # fmt: skip


def run_and_die_at(fatal: int, work: Callable[[], object]) -> bool:
    """Do *work* in a forked child that dies, no handler run, at its *fatal*-th durable step; a write is torn there.

    Returns whether it came to its end.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    steps = 0

    def step(name, real):
        def wrapped(*args, **options):
            nonlocal steps
            steps += 1
            if steps < fatal:
                return real(*args, **options)
            if name == "write_all":
                fd, data, offset = args
                os.pwrite(fd, data[: len(data) // 2], offset)
            os._exit(9)

        return wrapped

    for module, name in DURABLE:
        setattr(module, name, step(name, getattr(module, name)))
    try:
        work()
        os._exit(0)
    finally:
        os._exit(8)
