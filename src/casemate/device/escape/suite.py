"""Runs every probe outside and inside the sandbox and judges the two together.

A probe counts as blocked only if it was stopped under the load filter and under the run filter. Its control says
whether that means anything: the same probe, run by the same user outside, must have worked (`fired`), or there must be
a reason why this host cannot show it (`not-testable`). A control that failed without a reason is `not-fired`, and the
suite then does not pass.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Literal

from casemate.device import sandbox
from casemate.device.escape.catalogue import BY_ID, PROBES
from casemate.device.escape.probe import ALWAYS_ABSENT, CAPABILITIES, Probe
from casemate.device.escape.subject import ALL_LAYERS, order_line
from casemate.device.escape.world import World
from casemate.errors import OperationError

Control = Literal["fired", "not-fired", "not-testable"]
Stage = Literal["outside", "load", "run"]
Start = Callable[[str, Sequence[int], IO[bytes]], subprocess.Popen[bytes]]

_SILENCE: Final = 20.0
_ENDING: Final = 2.0
_MODULE: Final = "casemate.device.escape"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one probe did in one round: fired | stopped | untestable | died | hung, and its errno, signal or reason."""

    outcome: str
    why: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One probe, judged."""

    id: str
    tries: str
    layer: str
    control: Control
    why: str
    sandboxed: Literal["blocked", "escaped"]
    stopped_by: Mapping[str, str]  # stage -> errno or signal


@dataclasses.dataclass(frozen=True)
class Report:
    """All probes, judged."""

    probes: tuple[Verdict, ...]

    @property
    def escaped(self) -> int:
        """How many got out."""
        return sum(verdict.sandboxed == "escaped" for verdict in self.probes)

    def count(self, control: Control) -> int:
        """How many controls ended as *control*."""
        return sum(verdict.control == control for verdict in self.probes)

    @property
    def passed(self) -> bool:
        """Whether nothing escaped and every control fired or could not be tested."""
        return not self.escaped and not self.count("not-fired")

    def as_json(self) -> dict[str, Any]:
        """Return the object that `casemate sandbox test --json` prints (without the schema number)."""
        return {"probes": [dataclasses.asdict(verdict) for verdict in self.probes], "escaped": self.escaped}


@dataclasses.dataclass(frozen=True)
class Host:
    """What the invoking user may do here: decides why a control could not fire."""

    root: bool
    capabilities: int
    switches: Mapping[str, str]


def run_suite(
    uid: int | None,
    gid: int | None,
    *,
    without: Collection[str] = (),
) -> Report:
    """Run all probes; root's sandbox drops to *uid*:*gid*.

    *without* leaves out layers ("bwrap", "landlock", "seccomp") to show that they matter.

    Raises:
        HostError: a layer of the sandbox is missing here.
        OperationError: the probing process did not start.

    """
    sandbox.require_layers(uid, gid)
    host = read_host()
    layers = ALL_LAYERS - set(without)
    with World() as world:
        control = _run_round("outside", (), world, _outside(world))
        start = _without_namespaces(uid, gid) if "bwrap" in without else _inside(uid, gid)
        stages = {stage: _run_round(stage, layers, world, start) for stage in ("load", "run")}
    return Report(tuple(judge(probe, control, stages, host) for probe in PROBES))


# -- judging


def judge(
    probe: Probe, control: Mapping[str, Outcome], stages: Mapping[str, Mapping[str, Outcome]], host: Host
) -> Verdict:
    """Put the rounds of one *probe* together."""
    verdict, why = judge_control(probe, control[probe.id], host)
    inside = {stage: outcomes[probe.id] for stage, outcomes in stages.items()}
    out = any(outcome.outcome in {"fired", "hung"} for outcome in inside.values())  # undecided counts as out
    return Verdict(
        id=probe.id,
        tries=probe.tries,
        layer=probe.layer,
        control=verdict,
        why=why,
        sandboxed="escaped" if out else "blocked",
        stopped_by={stage: outcome.why or outcome.outcome for stage, outcome in inside.items()},
    )


def judge_control(probe: Probe, outcome: Outcome, host: Host) -> tuple[Control, str]:
    """Say what the run of *probe* outside the sandbox proves on this *host*, and why it proves no more."""
    if outcome.outcome == "fired":
        return "fired", ""
    if outcome.outcome == "untestable":
        return "not-testable", outcome.why
    if outcome.outcome == "died" and probe.fatal_means_absent:
        return "not-testable", f"the kernel does not offer it ({outcome.why})"
    if getattr(errno, outcome.why, None) in {*ALWAYS_ABSENT, *probe.absent}:
        return "not-testable", f"the host does not have it ({outcome.why})"
    lacking = [name for name in probe.needs if not host.capabilities >> CAPABILITIES[name] & 1]
    if lacking:
        return "not-testable", f"needs {lacking[0]}" if host.root else "needs root"
    closed = [gate.name for gate in probe.gates if host.switches.get(gate.name) in gate.closed]
    if closed and not host.root:
        return "not-testable", f"the host forbids it ({closed[0].replace('/', '.')}={host.switches[closed[0]]})"
    return "not-fired", outcome.why


def read_host() -> Host:
    """Read the caller's capabilities and every switch that a probe names."""
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines() if ":\t" in line
    )
    switches = {}
    for name in {gate.name for probe in PROBES for gate in probe.gates}:
        path = Path("/proc/sys", name)
        if path.exists():
            switches[name] = path.read_text("ascii").strip()
    return Host(root=os.geteuid() == 0, capabilities=int(status["CapEff"], 16), switches=switches)


# -- running


def _run_round(stage: Stage, layers: Collection[str], world: World, start: Start) -> dict[str, Outcome]:
    """Run every probe once; a process that a probe ends is followed by another for the rest."""
    this = world.start_round(sealed=stage != "outside")
    told: dict[str, Outcome] = {}
    while len(told) < len(PROBES):
        ids = [probe.id for probe in PROBES if probe.id not in told]
        order = functools.partial(order_line, stage, layers, ids, this.targets)
        told |= _run_process(order, this.fds, start)
    seen = world.seen()
    return {name: _proven(BY_ID[name], outcome, seen, world) for name, outcome in told.items()}


def _proven(probe: Probe, outcome: Outcome, seen: set[str], world: World) -> Outcome:
    """Replace a probe's own claim by the proof that its kind asks for."""
    if probe.proof == "outside" and outcome.outcome != "untestable":
        if probe.id in seen:
            return Outcome("fired", "")
        return Outcome("stopped", "no effect outside" if outcome.outcome == "fired" else outcome.why)
    if probe.proof == "secret" and outcome.outcome == "fired":
        if outcome.why == world.expected(probe.id):
            return Outcome("fired", "")
        return Outcome("stopped", "not the host's")
    return outcome


def _run_process(order: Callable[[int], str], fds: Sequence[int], start: Start) -> dict[str, Outcome]:
    """Run one probing process until it ends; at least one probe of its *order* has an outcome afterwards."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as errors, os.fdopen(reader, "rb", buffering=0) as report:
        try:
            process = start(order(writer), (writer, *fds), errors)
        finally:
            os.close(writer)
        try:
            told, current, hung = _follow(report)
        finally:
            ended = _end(process)
        if not told and not current:
            errors.seek(0)
            said = errors.read(4096).decode("utf-8", "replace").strip().splitlines()
            raise OperationError(
                f"the probing process did not start: {said[-1] if said else f'exit {process.returncode}'}",
                hint="run `casemate doctor`",
            )
    if current:
        told[current] = Outcome("hung", "silent") if hung else Outcome("died", ended)
    return told


def _end(process: subprocess.Popen[bytes]) -> str:
    """Make sure that *process* is gone; return how it ended."""
    try:
        code = process.wait(_ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    number = code - 128 if code > 128 else -code  # 128+N is bubblewrap's word for signal N
    return signal.Signals(number).name if number in set(signal.Signals) else f"exit {code}"


def _follow(report: IO[bytes]) -> tuple[dict[str, Outcome], str, bool]:
    """Read outcomes until the process ends; also return the probe under way then, and whether it fell silent."""
    told: dict[str, Outcome] = {}
    current = ""
    pending = b""
    while True:
        if not select.select([report], [], [], _SILENCE)[0]:
            return told, current, True
        data = report.read(65536)
        if not data:
            return told, current, False
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["outcome"] == "refused":
                raise OperationError(f"the sandbox refused: {event['why']}")
            if event["outcome"] == "begin":
                current = event["id"]
            else:
                current = ""
                if event["id"]:
                    told[event["id"]] = Outcome(event["outcome"], event["why"])


# -- the three ways to start the probing process


def _outside(world: World) -> Start:
    """Start it as whoever called, with everything a careless parent would leave open."""

    def start(order: str, fds: Sequence[int], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-m", _MODULE, order],
            pass_fds=(*fds, world.inherited),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )

    return start


def _inside(uid: int | None, gid: int | None) -> Start:
    """Start it exactly as an engine is started."""

    def start(order: str, fds: Sequence[int], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        named = {f"CASEMATE_PROBE_FD_{fd}": fd for fd in fds}
        plan = sandbox.SandboxPlan(module=_MODULE, arguments=(order,), fds=named, uid=uid, gid=gid)
        return sandbox.spawn(plan, stderr=errors.fileno())

    return start


def _without_namespaces(uid: int | None, gid: int | None) -> Start:
    """Start it under the engine's uid, but in the host's own namespaces."""

    def start(order: str, fds: Sequence[int], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-m", _MODULE, order],
            pass_fds=tuple(fds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={},
            user=uid,
            group=gid,
            extra_groups=None if uid is None else (),
        )

    return start
