"""The vault: container to sealed memory, against `age -d` on the same bytes; encrypting; the header check; memory.

Each pair of timings alternates in one run, so that a busy machine slows both. Files are warm: this measures the code,
not the disk. Ours does more than the peer: the plaintext ends in a memory file, age's goes to /dev/null.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import Row, options, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from casemate import keystores
from casemate.device import models, sealed, store
from casemate.device.home import Home
from casemate.errors import UntrustedDataError
from casemate.formats.gguf import check_header
from support import gguf_files

MIB = 1 << 20


def wall(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def pss() -> int:
    """Return this process's proportional set size in bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def warm_memory(size: int) -> None:
    """Take and give back as much memory: a hypervisor that reclaimed it hands it out again before the clock starts."""
    memory, block = os.memfd_create("warm"), bytes(MIB)
    for offset in range(0, size, MIB):
        os.pwrite(memory, block, offset)
    os.close(memory)


def load_rows(root: Path, home: Home, sources: keystores.Sources, plain: Path, rounds: int) -> list[Row]:
    size = plain.stat().st_size
    key = root / "age.key"
    subprocess.run(["age-keygen", "-o", key], check=True, capture_output=True)
    recipient = subprocess.run(["age-keygen", "-y", key], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["age", "-r", recipient, "-o", root / "model.age", plain], check=True)
    peaks: list[int] = []
    with keystores.unlock(home, sources) as keystore:

        def load() -> float:
            warm_memory(size)
            before, began = pss(), time.monotonic()
            with store.opened_model(home, keystore, "big") as (opened, verified):
                memory = sealed.unseal_into_memory(opened.fd, verified, lambda: None)
            spent = time.monotonic() - began
            peaks.append(pss() - before)
            os.close(memory)  # gives a gigabyte of pages back: the engine's exit pays for that, not the load
            return spent

        def decrypt_with_age() -> None:
            with Path(os.devnull).open("wb") as sink:
                subprocess.run(["age", "-d", "-i", key, root / "model.age"], check=True, stdout=sink)

        load(), decrypt_with_age()  # warm both
        times = [(load(), wall(decrypt_with_age)) for _ in range(rounds)]
    ours, theirs = (sorted(column)[rounds // 2] for column in zip(*times, strict=True))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ratio = theirs / ours
    return [
        Row(
            f"container to sealed memory, {size // MIB} MiB", size / MIB / ours, "MiB/s",
            "age -d", size / MIB / theirs, goal=">= 1.3x", met=ratio >= 1.3,
        ),
        Row("memory of the loading process beside the model (PSS growth)", max(peaks) / MIB, "MiB", goal="<= 32",
            met=max(peaks) <= 32 * MIB),
        Row("peak resident size of the loading process", grown / MIB, "MiB"),
    ]  # fmt: skip


def add_rows(home: Home, sources: keystores.Sources, plain: Path) -> list[Row]:
    size = plain.stat().st_size
    spent = wall(lambda: models.add_model(home, sources, plain, name="big"))
    whole = wall(lambda: models.verify_model(home, sources, "big"))
    return [
        Row(f"model add, {size // MIB} MiB (check, hash, encrypt, fsync)", size / MIB / spent, "MiB/s"),
        Row("model verify (decrypt, hash)", size / MIB / whole, "MiB/s"),
    ]


def check_rows() -> list[Row]:
    worst = 0.0
    for data, _ in gguf_files.MALFORMED.values():
        began = time.process_time()
        try:
            check_header(lambda offset, length, d=data: d[offset : offset + length], len(data))
        except UntrustedDataError:
            worst = max(worst, time.process_time() - began)
    tokens = [f"token{n}" for n in range(150_000)]
    keys = [row for row in gguf_files.KEYS if b"ggml.tokens" not in row]
    array = (gguf_files.STRING, tokens)
    large = gguf_files.assemble(
        [*keys, gguf_files.pair("tokenizer.ggml.tokens", gguf_files.ARRAY, array),
         gguf_files.pair("tokenizer.ggml.merges", gguf_files.ARRAY, array)]
    )  # fmt: skip
    began = time.process_time()
    check_header(lambda offset, length: large[offset : offset + length], len(large))
    spent = time.process_time() - began
    return [
        Row("header check: dearest malformed file", worst * 1000, "ms CPU", goal="< 50", met=worst < 0.05),
        Row("header check: valid, 150 k tokens and 150 k merges", spent * 1000, "ms CPU"),
    ]


def main() -> None:
    args = options(__doc__ or "")
    size, rounds = (64 * MIB, 3) if args.quick else (1024 * MIB, 7)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        home = Home(root / "home").create()
        sources = keystores.from_environment(home, {"CASEMATE_KEYFILE": str(root / "keys" / "k.key")})
        keystores.create(home, sources).wipe()
        plain = root / "plain.gguf"
        gguf_files.write_sized(plain, size)
        rows = add_rows(home, sources, plain) + load_rows(root, home, sources, plain, rounds) + check_rows()
    publish("vault", rows, args)


if __name__ == "__main__":
    main()
