"""From nothing to an answer: encrypted container, sandboxed engine, against llama.cpp on the plain file, unsandboxed.

The peer is one Python process that loads the plain file with the same bindings. Ours is timed by the agent: from the
decision to start an engine (namespaces, decryption into the sealed memory file, Landlock, both filters) to `Ready`.
Also: memory of the running device, as proportional set size (shared pages counted once, where they are shared).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import big_model
import openai
from report import Row, options, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.device import Device, running

PLAIN = """
import sys, xllamacpp
p = xllamacpp.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 2048; p.warmup = False; p.n_gpu_layers = 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1; p.n_parallel = 1; p.cache_ram_mib = 0
server = xllamacpp.Server(p)
print("ready", flush=True); import os; sys.stdin.readline(); os._exit(0)
"""
ALLOWANCE = 0.150
RESTARTS = 5  # more within ten minutes would need triage


def plain_ready(model: Path) -> float:
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", PLAIN, str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        spent = time.monotonic() - began
        process.kill()
    return spent


def sandboxed_ready(device: Device) -> float:
    before = device.kill("engine")
    while not (device.refresh()["ready"] and device.pid_of("engine") not in {0, before}):
        time.sleep(0.2)
    return float(device.status["models"][0]["ready_after"])


def pss(pid: int, *kinds: str) -> int:
    """Return bytes of proportional set size; *kinds* picks lines (Pss, Pss_Shmem, Pss_Anon)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    rows = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return sum(rows[kind] for kind in kinds or ("Pss",))


def main() -> None:
    args = options(__doc__)
    rounds = 2 if args.quick else 5
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        for label, size in (("2.8 MB demo model", 0), ("390 MB model", 1)):
            path = big_model.SAFFRON
            if size:
                if args.quick:
                    continue
                path = root / "big.gguf"
                big_model.write(path)
            began = time.monotonic()
            with running(root / f"home{size}", "--model", str(path), environ={"CASEMATE_ENGINE_SLOTS": "1"}) as device:
                whole = time.monotonic() - began
                rows += ready_rows(label, path, device, rounds)
                rows += memory_rows(label, path, device)
            rows.append(Row(f"first `casemate up`, {label}: home, keystore, encryption, ready", whole, "s"))
    publish("ready", rows, args)


def ready_rows(label: str, path: Path, device: Device, rounds: int) -> list[Row]:
    """Warm: both files in the page cache. Cold: neither, as after a boot."""
    container = device.home / "models" / f"{device.refresh()['models'][0]['name']}.cmodel"
    plain: dict[str, list[float]] = {"cold": [], "warm": []}
    ours: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        for state in ("cold", "warm"):
            if state == "cold":
                forget(path)
            plain[state].append(plain_ready(path))
    for round_number in range(min(2 * rounds, RESTARTS)):
        state = ("cold", "warm")[round_number % 2]
        if state == "cold":
            forget(container)
        ours[state].append(sandboxed_ready(device))
    rows = []
    for state in ("cold", "warm"):
        peer, mine = statistics.median(plain[state]), statistics.median(ours[state])
        met = mine <= 1.25 * peer + ALLOWANCE
        what = f"engine ready, encrypted and sandboxed, {label}, {state} page cache"
        rows.append(Row(what, mine, "s", "plain file, no sandbox", peer, "<= 1.25x + 0.15 s", met))
    return rows


def forget(path: Path) -> None:
    """Write *path* back and drop its pages from the cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def memory_rows(label: str, path: Path, device: Device) -> list[Row]:
    """Total beyond the model, and what serving adds to it: 20 answers, four of them at a time."""
    model = path.stat().st_size
    before = engine_and_vault(device)
    serve(device)
    after = engine_and_vault(device)
    roles = {"agent": device.process.pid, **{role: device.pid_of(role) for role in ("gateway", "journal")}}
    idle = sum(pss(pid) for pid in roles.values())
    parts = ", ".join(f"{role} {pss(pid) >> 20}" for role, pid in roles.items())
    grown = max(before, after) - before
    mib = 2**20
    return [
        Row(f"vault + engine PSS over the model's size, {label}", (after - model) / mib, "MiB"),
        Row(f"... of it grown while serving, {label}", grown / mib, "MiB", goal="<= 32 MiB", met=grown <= 32 * mib),
        Row(f"agent + gateway + journal PSS ({parts})", idle / mib, "MiB", goal="<= 150 MiB", met=idle <= 150 * mib),
    ]


def engine_and_vault(device: Device) -> int:
    return pss(device.pid_of("engine")) + pss(device.pid_of("vault"))


def serve(device: Device) -> None:
    client = openai.OpenAI(base_url=f"{device.endpoint}/v1", api_key=device.key)
    name = device.status["models"][0]["name"]

    def ask(_: int) -> None:
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=32)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(20)))


if __name__ == "__main__":
    main()
