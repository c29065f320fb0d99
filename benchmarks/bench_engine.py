"""What the sandbox costs: time to ready and tokens per second, inside it and outside, with the same code and model.

The peer is the engine's own llama.cpp wrapper in a plain Python process: no namespaces, no Landlock, no filters, no
memory file, no link. Rounds alternate, so a busy machine slows both.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import big_model
from report import Row, options, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from casemate.device.escape.suite import run_suite
from casemate.device.home import owner_of
from casemate.formats import ipc
from support.engine import Engine, memory_file, spawned

PROMPT = "The group wants noodles near the river and"
PLAIN = f"""
import os, sys, tempfile, time
from casemate.device.engine.llama import Llama, Sizing
from casemate.device.engine.requests import parse
from casemate.formats import ipc
model = Llama(sys.argv[1], tempfile.mkdtemp(), Sizing(512, 1, 512, "mean", lock=False), threads=1)
print("ready", flush=True)
for line in sys.stdin:
    params = {{"prompt": {PROMPT!r}, "max_tokens": int(line), "temperature": 1.0, "seed": 7}}
    stamps = []
    began = time.monotonic()
    model.run(parse(ipc.Generate(1, "completion", params, 60.0), context=512), 0, reuse=False,
              emit=lambda text: not (text and stamps.append(time.monotonic())))
    print(stamps[0] - began, (len(stamps) - 1) / (stamps[-1] - stamps[0]), flush=True)
os._exit(0)
"""


@contextmanager
def plain(path: Path) -> Iterator[tuple[float, subprocess.Popen[str]]]:
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", PLAIN, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield time.monotonic() - began, process
        process.kill()


@contextmanager
def sandboxed(path: Path) -> Iterator[tuple[float, Engine]]:
    """Time from the decision to start until `Ready`; filling the memory file is the vault's work and not counted."""
    data = path.read_bytes()
    held = memory_file(data)
    began = time.monotonic()
    with spawned() as engine:
        engine.order(slots=1, threads=1, context=512)
        engine.supply.send(ipc.Weights("model", len(data)), [held])
        os.close(held)
        said = engine.told()
        assert isinstance(said, ipc.Ready), said
        yield time.monotonic() - began, engine


def speed_inside(engine: Engine, tokens: int) -> tuple[float, float]:
    """Return seconds to the first token and tokens per second after it."""
    began = time.monotonic()
    number = engine.ask("completion", prompt=PROMPT, max_tokens=tokens, temperature=1.0, seed=7)
    stamps = []
    while isinstance(message := engine.heard(), ipc.Chunk):
        assert message.id == number
        stamps.append(time.monotonic())
    return stamps[0] - began, (len(stamps) - 1) / (stamps[-1] - stamps[0])


def speed_outside(process: subprocess.Popen[str], tokens: int) -> tuple[float, float]:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{tokens}\n")
    process.stdin.flush()
    first, rate = process.stdout.readline().split()
    return float(first), float(rate)


def rows_for(label: str, path: Path, rounds: int, tokens: int) -> list[Row]:
    ready: dict[str, list[float]] = {"in": [], "out": []}
    first: dict[str, list[float]] = {"in": [], "out": []}
    rate: dict[str, list[float]] = {"in": [], "out": []}
    for _ in range(rounds):
        with plain(path) as (spent, _process):
            ready["out"].append(spent)
        with sandboxed(path) as (spent, _engine):
            ready["in"].append(spent)
    with plain(path) as (_, process), sandboxed(path) as (_, engine):
        for _turn in range(2 * rounds):
            for where, measured in (("out", speed_outside(process, tokens)), ("in", speed_inside(engine, tokens))):
                first[where].append(measured[0])
                rate[where].append(measured[1])
    middle = {name: {where: statistics.median(kept[where]) for where in kept} for name, kept in
              {"ready": ready, "first": first, "rate": rate}.items()}  # fmt: skip
    added = middle["ready"]["in"] - middle["ready"]["out"]
    token = (1 / middle["rate"]["in"] - 1 / middle["rate"]["out"]) * 1e3
    late = (middle["first"]["in"] - middle["first"]["out"]) * 1e3
    return [
        Row(f"engine ready inside the sandbox, {label}", middle["ready"]["in"], "s", "outside", middle["ready"]["out"]),
        Row(f"... added by the sandbox, {label}", added * 1e3, "ms", goal="<= 150 ms", met=added <= 0.150),
        Row(f"tokens per second over the link, {label}", middle["rate"]["in"], "1/s", "in process",
            middle["rate"]["out"]),
        Row(f"... added to each token, {label}", token, "ms", goal="<= 0.1 ms", met=token <= 0.1),
        Row(f"... added to the first token, {label}", late, "ms", goal="<= 2 ms", met=late <= 2),
    ]  # fmt: skip


def suite_row() -> Row:
    owner = owner_of("engine")
    began = time.monotonic()
    report = run_suite(owner.uid if owner else None, owner.gid if owner else None)
    spent = time.monotonic() - began
    return Row(f"`casemate sandbox test`, {len(report.probes)} probes three times", spent, "s")


def main() -> None:
    args = options(__doc__)
    rounds = 2 if args.quick else 5
    rows = rows_for("2.8 MB demo model", big_model.SAFFRON, rounds, 48)
    if not args.quick:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "big.gguf"
            big_model.write(path)
            rows += rows_for("390 MB model", path, rounds, 32)
    publish("engine", [*rows, suite_row()], args)


if __name__ == "__main__":
    main()
