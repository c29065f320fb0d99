"""Fetching a payload: what a cut costs, how well the rate limit holds, and the throughput; curl in the same run.

Both fetch the same chunks from the same nginx over loopback, in processes of their own, one connection each. Ours does
more: it checks every chunk's digest and makes it durable before the next; curl writes files, and for the second
comparison checks and syncs them as ours does (sha256sum, sync) afterwards.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report import Row, options, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from casemate.clock import SystemClock
from casemate.device.update.pace import Limits
from casemate.device.update.pacer import Pacer
from casemate.device.update.transport import Transport, parse_endpoint
from casemate.formats import manifest
from casemate.formats.payload import SEALED_CHUNK_BYTES
from support import mirror, releases

MIB = 1 << 20
FETCHING = Path(__file__).resolve().parents[1] / "tests" / "support" / "fetching.py"
NGINX = """
daemon off; worker_processes 1; pid {root}/nginx.pid; error_log {root}/error.log; user root;
events {{ worker_connections 64; }}
http {{ access_log off; sendfile on; keepalive_requests 100000;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
  uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
  server {{ listen 127.0.0.1:{port}; root {root}/public; }} }}
"""


def write(root: Path, size: int) -> releases.Made:
    made = releases.release(np.random.default_rng(3).bytes(size))
    for digest, data in made.chunks.items():
        path = root / "public" / manifest.chunk_path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "manifest.json").write_bytes(manifest.encode(made.manifest))
    return made


@contextlib.contextmanager
def nginx(root: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (root / "nginx.conf").write_text(NGINX.format(root=root, port=port))
    process = subprocess.Popen(["nginx", "-p", str(root), "-c", str(root / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def run(command: list[str]) -> tuple[float, float]:
    """Run it; returns seconds of wall time and its own peak memory in MiB (a fork begins with its parent's)."""
    begun, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            peak = max(peak, int(status.split("VmHWM:")[1].split()[0]))
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"failed: {command}")
    return time.monotonic() - begun, peak / 1024


def ours(root: Path, url: str) -> tuple[float, float]:
    shutil.rmtree(root / "fetch", ignore_errors=True)
    return run([sys.executable, str(FETCHING), url, str(root / "manifest.json"), str(root / "fetch" / "r")])


def curl(root: Path, url: str, made: releases.Made, *more: str) -> tuple[float, float]:
    target = root / "curl"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    chunks = made.manifest.full.chunks
    lines = [f'url = "{url}{chunk.path}"\noutput = "{target}/{index}"\n' for index, chunk in enumerate(chunks)]
    (root / "curl.conf").write_text("".join(lines))
    return run(["curl", "-sS", "--fail", *more, "-K", str(root / "curl.conf")])


def check(root: Path, made: releases.Made) -> float:
    """What curl's user would have to do to be as sure: digests, and the disk."""
    sums = "".join(f"{c.sha256}  {root}/curl/{i}\n" for i, c in enumerate(made.manifest.full.chunks))
    (root / "sums").write_text(sums)
    files = [str(root / "curl" / str(index)) for index in range(len(made.manifest.full.chunks))]
    return run(["sha256sum", "--quiet", "-c", str(root / "sums")])[0] + run(["sync", *files])[0]


def throughput(root: Path, made: releases.Made, rounds: int) -> list[Row]:
    size = made.manifest.full.transfer_bytes / MIB
    best: dict[str, float] = {}
    memory: dict[str, float] = {}
    with nginx(root) as url:
        for _ in range(rounds):
            for name, (wall, peak), after in (
                ("ours", ours(root, url), 0.0),
                ("curl", curl(root, url, made), check(root, made)),
            ):
                best[name] = min(best.get(name, wall), wall)
                best[f"{name}, sure"] = min(best.get(f"{name}, sure", wall + after), wall + after)
                memory[name] = max(memory.get(name, 0.0), peak)
    return [
        Row(f"throughput, {size:.0f} MiB", size / best["ours"], "MiB/s", "curl", size / best["curl"]),
        Row("the same, checked and durable", size / best["ours, sure"], "MiB/s", "curl + sha256sum + sync",
            size / best["curl, sure"]),
        Row("peak memory", memory["ours"], "MiB", "curl", memory["curl"]),
    ]  # fmt: skip


def kills(root: Path, made: releases.Made, count: int) -> list[Row]:
    """Kill a fetch at random moments; what the server sent beyond the payload, for the worst kill."""
    draw, worst, total = random.Random(5), 0, 0
    shutil.rmtree(root / "fetch", ignore_errors=True)
    chunks = {chunk.path: chunk.size for chunk in made.manifest.full.chunks}
    with mirror.serving(root / "public", rate=24 * MIB) as site:
        for _ in range(count):
            site.sent.clear()
            command = [sys.executable, str(FETCHING), site.url, str(root / "manifest.json"), str(root / "fetch" / "r")]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            kept = int(child.stdout.readline())
            goal = draw.randint(1, 2 * SEALED_CHUNK_BYTES)
            while site.bytes_of_chunks < goal and child.poll() is None:
                time.sleep(0.001)
            child.send_signal(signal.SIGKILL)
            child.communicate()
            time.sleep(0.05)
            again = durable(root, made) - kept
            lost = sum(min(size, chunks[path]) for path, size in site.sent.items()) - again
            worst, total = max(worst, lost), total + lost
            if durable(root, made) == made.manifest.full.transfer_bytes:
                shutil.rmtree(root / "fetch")
    return [
        Row(f"fetched again after a kill, worst of {count}", worst / MIB, "MiB",
            goal="<= 1 chunk (1 MiB and its tag)", met=worst <= SEALED_CHUNK_BYTES),
        Row("fetched again after a kill, mean", total / count / MIB, "MiB"),
    ]  # fmt: skip


def durable(root: Path, made: releases.Made) -> int:
    """Return the bytes of whole chunks in the file: what the next start does not ask for."""
    path = root / "fetch" / "r" / f"{made.manifest.full.id}.sealed"
    raw = path.read_bytes() if path.exists() else b""
    total = offset = 0
    for chunk in made.manifest.full.chunks:
        if releases.digest(raw[offset : offset + chunk.size]) == chunk.sha256:
            total += chunk.size
        offset += chunk.size
    return total


def cuts(root: Path, made: releases.Made) -> Row:
    """Cut the line every 300 kB, in one run."""
    with mirror.serving(root / "public") as site:

        def cut(handler, path):
            begun = int(handler.headers.get("Range", "bytes=0-")[6:-1])
            data = (site.root / path).read_bytes()
            if len(data) - begun <= 300_000:
                return False
            site.give(handler, path, data, stop=300_000)
            return True

        site.answer("chunks/.*", cut)
        with Transport(parse_endpoint(site.url), sleep=lambda _: None) as transport:
            for chunk in made.manifest.full.chunks[:16]:
                transport.get(chunk.path, chunk.size)
        again = site.bytes_of_chunks - sum(chunk.size for chunk in made.manifest.full.chunks[:16])
    return Row("fetched again when the line is cut every 300 kB", again / MIB, "MiB", goal="<= 1", met=again <= MIB)


def limits(root: Path, made: releases.Made, rate: int) -> Row:
    """Fetch with a limit; how far the rate was off, in per cent."""
    chunks = made.manifest.full.chunks[:24]
    size = sum(chunk.size for chunk in chunks)
    with nginx(root) as url, Transport(parse_endpoint(url)) as transport:
        pacer = Pacer(root / "spent", Limits(rate=rate), SystemClock())
        begun = time.monotonic()
        for chunk in chunks:
            transport.get(chunk.path, chunk.size, pacer.taken)
        mine = size / (time.monotonic() - begun)
        (root / "public" / "one").write_bytes(bytes(size))  # curl limits each transfer by itself
        wall = run(["curl", "-sS", "--limit-rate", str(rate), "-o", "/dev/null", f"{url}one"])[0]
    off, peer = abs(mine / rate - 1) * 100, abs(size / wall / rate - 1) * 100
    return Row(f"off a limit of {rate / MIB:.0f} MiB/s", off, "%", "curl --limit-rate", peer, "<= 5", off <= 5)


def main() -> None:
    args = options(__doc__ or "")
    size = (16 if args.quick else 256) * MIB
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        made = write(root, size)
        rows = throughput(root, made, 1 if args.quick else 3)
        rows += kills(root, made, 3 if args.quick else 20)
        rows.append(cuts(root, made))
        rows.append(limits(root, made, (8 if args.quick else 4) * MIB))
    publish("fetch", rows, args)


if __name__ == "__main__":
    main()
