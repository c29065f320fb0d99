"""The probing process: enters the engine's own sandbox (or none, for the control), then tries every probe.

One JSON line per event goes to the report descriptor: `begin` before a probe, its outcome after it. A probe that ends
the process is known by its missing outcome, and the suite starts another process for the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import encodings.idna  # noqa: F401 - the socket module would import it later
import errno
import json
import os
import select
import signal
from collections.abc import Collection
from typing import Any, Final

from casemate.device import sandbox
from casemate.device.escape import kernel, memory
from casemate.device.escape.catalogue import BY_ID
from casemate.device.escape.probe import NotTestableError, Probe, Targets
from casemate.device.sandbox import landlock, limits, seccomp
from casemate.errors import CasemateError

LIMITS: Final = sandbox.Limits(memory=4 << 30, tasks=64)
ALL_LAYERS: Final = frozenset({"landlock", "seccomp"})
_PROBE_SECONDS: Final = 10


def main(order: dict[str, Any]) -> None:
    """Carry out one *order* of the suite."""
    report = Report(order["report"])
    memory.report_fd.append(order["report"])
    kernel.prepare_gadget()
    targets = Targets(**{**order["targets"], "block_devices": tuple(order["targets"]["block_devices"])})
    isolate = order["stage"] == "outside" or "seccomp" not in order["layers"]
    if order["stage"] != "outside":
        try:
            confine(order["stage"], frozenset(order["layers"]))
        except CasemateError as error:
            report.write(id="", outcome="refused", why=f"{error.message} ({error.hint})")
            return
    for name in order["ids"]:
        report.write(id=name, outcome="begin", why="")
        run = _run_apart if isolate else _run_here
        run(BY_ID[name], targets, report)
    report.write(id="", outcome="end", why="")


def confine(stage: str, layers: Collection[str]) -> None:
    """Enter the sandbox's *stage* (load or run) with the engine's own function, or with only some *layers*.

    The second way exists to show that each layer matters; it is built of the same parts.
    """
    if frozenset(layers) == ALL_LAYERS:
        confined = sandbox.enter_load(LIMITS)
        if stage == "run":
            confined.enter_run()
        return
    limits.cap(LIMITS)
    filters = [seccomp.build(rules) for rules in (seccomp.LOAD, seccomp.RUN)]
    if "landlock" in layers:
        landlock.restrict([limits.PRIVATE_DIRECTORY])
    if "seccomp" in layers:
        for made in filters[: 2 if stage == "run" else 1]:
            made.load()


class Report:
    """The line to the suite."""

    def __init__(self, fd: int) -> None:
        """Write to *fd*."""
        self._fd = fd

    def write(self, **line: str) -> None:
        """Say one thing."""
        os.write(self._fd, json.dumps(line).encode() + b"\n")


def _run_here(probe: Probe, targets: Targets, report: Report) -> None:
    outcome, why = "fired", ""
    try:
        why = probe.attempt(targets) or ""
    except NotTestableError as error:
        outcome, why = "untestable", str(error)
    except OSError as error:
        outcome, why = "stopped", errno.errorcode.get(error.errno or 0, type(error).__name__)
    except Exception as error:  # noqa: BLE001 - anything but success is a stop; the name helps to see a broken probe
        outcome, why = "stopped", type(error).__name__
    report.write(id=probe.id, outcome=outcome, why=why)


def _run_apart(probe: Probe, targets: Targets, report: Report) -> None:
    """Run *probe* in a child: success may change a process for good, or end it."""
    try:
        child = os.fork()
    except OSError:
        _run_here(probe, targets, report)
        return
    if child == 0:
        _run_here(probe, targets, report)
        os._exit(0)
    pidfd = os.pidfd_open(child)
    if not select.select([pidfd], [], [], _PROBE_SECONDS)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(pidfd)
    _, status = os.waitpid(child, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        name = "exit"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
        report.write(id=probe.id, outcome="died", why=name)


def order_line(stage: str, layers: Collection[str], ids: Collection[str], targets: Targets, report: int) -> str:
    """Return the argument that starts this module."""
    order = {
        "stage": stage,
        "layers": sorted(layers),
        "ids": list(ids),
        "targets": dataclasses.asdict(targets),
        "report": report,
    }
    return json.dumps(order)
