"""Model updates as deltas: their size, and what a device spends to apply one; hdiffpatch and zstd in the same run.

The model is Q4_0 with gaussian weights, 142 tensors; v2 is quantised again after a tiny change of the weights. Every
engine applies in a process of its own, which says how much its peak memory rose; ours also decrypts, verifies and
encrypts, container to container.
"""

# ruff: noqa: PLC0415 - each process imports what it measures, before it measures

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import Row, options, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import gguf_files, weights

TENSORS = 142
BLOCKS = 53_200  # of 18 bytes: a model of 136 MB
TINY_CHANGE = 4e-5  # of weights of 0.02: one byte in twenty differs
PEER_SECONDS = 75.0


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two versions of a model."""

    old: Path
    new: Path


def write_pair(root: Path, name: str, changed: range, blocks: int, *, more: int, tensors: int = TENSORS) -> Pair:
    """Write both files; the tensors in *changed* are quantised again, *more* bytes of metadata inserted."""
    size = blocks * weights.ROW
    padded = -(-size // 32) * 32
    rows = [gguf_files.tensor(f"blk.{n}.weight", (blocks * 32,), weights.Q4_0, n * padded) for n in range(tensors)]
    notes = [gguf_files.pair("general.notes", gguf_files.STRING, b"n" * more)] if more else []
    pair = Pair(root / f"{name}-old.gguf", root / f"{name}-new.gguf")
    rng = np.random.default_rng(11)
    with pair.old.open("wb") as old, pair.new.open("wb") as new:
        old.write(gguf_files.assemble(gguf_files.KEYS, rows, b""))
        new.write(gguf_files.assemble((*gguf_files.KEYS, *notes), rows, b""))
        for n in range(tensors):
            plain = rng.standard_normal((blocks, 32), dtype=np.float32) * np.float32(0.02)
            was = now = weights.quantise(plain).tobytes()
            if n in changed:
                noise = rng.standard_normal(plain.shape, dtype=np.float32) * np.float32(TINY_CHANGE)
                now = weights.quantise(plain + noise).tobytes()
            old.write(was.ljust(padded, b"\0"))
            new.write(now.ljust(padded, b"\0"))
    return pair


def differing(pair: Pair) -> float:
    """Return the share of bytes that differ (of files of one length)."""
    old, new = (np.memmap(path, np.uint8, "r") for path in (pair.old, pair.new))
    return float((old != new).mean())


# --- one engine in one process --------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """Return VmRSS or VmHWM in bytes. (ru_maxrss would begin with what the parent had.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split(maxsplit=1)[0]) * 1024


def measured(work: Callable[..., Any], *arguments: Any, limit: float = 600.0) -> dict[str, float] | None:
    """Run *work* in a fresh process: its CPU seconds, how far it raised the process's peak memory, what it says."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    said = ours.recv() if ours.poll(limit) else None
    if said is None:
        process.terminate()
    process.join()
    return said


def _child(pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send(work(*arguments))


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Do *work*; everything it needs is imported."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    before, started = resident("VmRSS"), time.process_time()
    result = work()
    seconds, peak = time.process_time() - started, resident("VmHWM")
    return {"seconds": seconds, "memory": peak - before, "peak": peak, "result": result}


def source_of(path: Path) -> Any:
    from casemate.release import delta as planner

    fd = os.open(path, os.O_RDONLY)
    return planner.describe("model.gguf", lambda offset, length: os.pread(fd, length, offset), path.stat().st_size)


def make_ours(pair: Pair, out: Path) -> dict[str, float]:
    from casemate.release import delta as planner

    old, new = source_of(pair.old), source_of(pair.new)

    def work() -> int:
        with out.open("wb") as file:
            return sum(file.write(piece) for piece in planner.make_delta(old, new))

    return timed(work)


def prepare_home(pair: Pair, delta: Path, root: Path) -> None:
    """Make a home with the old container, and a sealed release with the delta."""
    import pytest

    from casemate.crypto.secret import Secret
    from casemate.formats import grant
    from casemate.formats import manifest as fmt
    from support import homes, releases

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("casemate.device.models.inspect_file", homes.inspect_here)
        bench = homes.make(root, patch)
        bench.add(pair.old.read_bytes(), name="old")
        made = releases.release(pair.new.read_bytes(), delta=delta.read_bytes(), base=pair.old.read_bytes())
        with bench.unlock() as keystore, Secret(made.key) as key:
            ticket = grant.make(key, made.manifest.release, keystore.owner_public)
    payload = made.manifest.payloads[1].id
    (root / "stream").write_bytes(made.stream(payload))
    for name, data in (("manifest", fmt.encode(made.manifest)), ("grant", ticket), ("sealed", made.sealed)):
        (root / name).write_bytes(data)
    (root / "payload").write_text(payload, encoding="ascii")


def apply_ours(root: Path) -> dict[str, float]:
    """Have the vault make the new container: open the base, decrypt, patch, verify, encrypt."""
    from casemate import keystores
    from casemate.clock import SystemClock
    from casemate.device import transcode  # noqa: F401 - imported before the memory is measured
    from casemate.device.home import Home
    from casemate.device.releases import Releases
    from casemate.formats import ipc

    home = Home(root / "home").open()
    found = keystores.from_environment(home, {"CASEMATE_KEYFILE": str(root / "home-keys" / "device.key")})
    manifest, ticket, sealed = ((root / name).read_bytes() for name in ("manifest", "grant", "sealed"))
    payload = (root / "payload").read_text(encoding="ascii")
    request = ipc.Transcode(1, manifest, ticket, sealed, payload, "model.gguf", "new", "old")
    fd = os.open(root / "stream", os.O_RDONLY)
    with keystores.unlock(home, found) as keystore:
        releases = Releases(home, keystore, lambda *_: None, SystemClock())
        done = timed(lambda: releases.answer(request, [fd], lambda: None))
    if not isinstance(done["result"], ipc.Transcoded):
        raise SystemExit(f"refused: {done['result']}")
    return {**done, "result": done["result"].bytes}


def make_hdiffpatch(pair: Pair, out: Path) -> dict[str, float]:
    import hdiffpatch

    old, new = pair.old.read_bytes(), pair.new.read_bytes()
    return timed(lambda: out.write_bytes(hdiffpatch.diff(old, new, compression=hdiffpatch.COMPRESSION_ZSTD)))


def apply_hdiffpatch(pair: Pair, delta: Path) -> dict[str, float]:
    import hdiffpatch

    return timed(lambda: len(hdiffpatch.apply(pair.old.read_bytes(), delta.read_bytes())))


def prefixed(old: bytes) -> tuple[Any, Any]:
    from casemate.formats.frames import zstd

    return zstd, zstd.ZstdDict(old, is_raw=True).as_prefix


def make_zstd(pair: Pair, out: Path) -> dict[str, float]:
    old, new = pair.old.read_bytes(), pair.new.read_bytes()
    zstd, prefix = prefixed(old)
    parameter = zstd.CompressionParameter
    chosen = {parameter.compression_level: 3, parameter.enable_long_distance_matching: 1, parameter.window_log: 28}
    return timed(lambda: out.write_bytes(zstd.compress(new, options=chosen, zstd_dict=prefix)))


def apply_zstd(pair: Pair, delta: Path) -> dict[str, float]:
    from casemate.formats.frames import zstd

    def work() -> int:
        prefix = zstd.ZstdDict(pair.old.read_bytes(), is_raw=True).as_prefix
        chosen = {zstd.DecompressionParameter.window_log_max: 28}
        return len(zstd.decompress(delta.read_bytes(), zstd_dict=prefix, options=chosen))

    return timed(work)


# --- the report -----------------------------------------------------------------------------------------------------


def peers(what: str, pair: Pair, root: Path) -> list[Row]:
    """Measure the other engines: size, CPU to make, memory and CPU to apply."""
    rows, size = [], pair.new.stat().st_size
    for name, make, use in (("hdiffpatch", make_hdiffpatch, apply_hdiffpatch), ("zstd prefix", make_zstd, apply_zstd)):
        delta = root / "peer.delta"
        made = measured(make, pair, delta, limit=PEER_SECONDS)
        if made is None:
            rows.append(Row(f"{what}: {name}: gave up making it after", PEER_SECONDS, "s"))
            continue
        rows.append(Row(f"{what}: {name}: size", 100 * delta.stat().st_size / size, "%"))
        used = measured(use, pair, delta)
        if used is None or used["result"] != size:
            raise SystemExit(f"{name} did not come back")
        rows.append(Row(f"{what}: {name}: memory to apply", used["memory"] / 1e6, "MB"))
        rows.append(Row(f"{what}: {name}: apply, plain to plain", size / 1e6 / used["seconds"], "MB/CPU-s"))
        delta.unlink()
    return rows


def ours(what: str, pair: Pair, root: Path, goal: float) -> tuple[list[Row], float]:
    size = pair.new.stat().st_size
    delta, home = root / "ours.delta", root / f"device-{len(list(root.iterdir()))}"
    home.mkdir()
    made = measured(make_ours, pair, delta)
    prepared = multiprocessing.get_context("spawn").Process(target=prepare_home, args=(pair, delta, home))
    prepared.start()
    prepared.join()
    used = measured(apply_ours, home)
    if made is None or used is None:
        raise SystemExit("our own delta was not made or applied in time")
    share = 100 * delta.stat().st_size / size
    speed = size / 1e6 / used["seconds"]
    rows = [
        Row(f"{what}: size", share, "%", goal=f"<= {goal} %", met=share <= goal),
        Row(f"{what}: make", size / 1e6 / made["seconds"], "MB/CPU-s"),
        Row(f"{what}: memory to apply", used["memory"] / 1e6, "MB", goal="<= 64 MB", met=used["memory"] <= 64e6),
        Row(f"{what}: the whole process at its peak, interpreter and libraries too", used["peak"] / 1e6, "MB"),
        Row(f"{what}: decrypt + patch + verify + encrypt", speed, "MB/CPU-s", goal=">= 150", met=speed >= 150),
    ]
    if used["result"] != size:
        raise SystemExit("another model came out")
    return rows, used["memory"]


def main() -> None:
    args = options(__doc__)
    blocks = BLOCKS // 20 if args.quick else BLOCKS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("CASEMATE_BENCH_DIR")) as name:
        root = Path(name)
        root.chmod(0o755)  # a home must be reachable for the device's users
        few = write_pair(root, "few", range(0, TENSORS, 25), blocks, more=2000)
        found, small = ours("6 of 142 tensors changed, metadata inserted", few, root, 0.7)
        rows += found + peers("6 of 142", few, root)
        for path in (few.old, few.new):
            path.unlink()
        every = write_pair(root, "every", range(TENSORS), blocks, more=0)
        rows.append(Row("every tensor changed: bytes that differ", 100 * differing(every), "%"))
        found, _ = ours("every tensor changed", every, root, 6.0)
        rows += found + peers("every tensor", every, root)
        for path in (every.old, every.new):
            path.unlink()
        large = write_pair(root, "large", range(0, 3 * TENSORS, 25), blocks, more=2000, tensors=3 * TENSORS)
        found, large_memory = ours("three times the model", large, root, 0.7)
        rows += found
        rows.append(Row("three times the model: memory grows by", (large_memory - small) / 1e6, "MB", goal="<= 8 MB",
                        met=large_memory - small <= 8e6))  # fmt: skip
    publish("delta", rows, args)


if __name__ == "__main__":
    main()
