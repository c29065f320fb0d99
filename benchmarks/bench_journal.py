"""The journal: durable events per second against plain files and SQLite, and how fast a log is verified."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path

from report import Row, options, publish

from casemate.clock import SystemClock
from casemate.crypto import hpke
from casemate.device.channel import pair
from casemate.device.journal import JournalWriter, LogFiles, verify
from casemate.device.journal.server import PUBLISH_EVERY, JournalServer
from casemate.formats import event, event_schema, ipc

BATCH = 64
HERE = Path(__file__).parent
_, OWNER = hpke.generate()


def sample(number: int) -> event.Event:
    return event.guard_verdict(
        app="kitchen", request=f"req-{number}", channel="user", action="block", reasons=["injection"], now=1.7e9
    )


def timed(work) -> tuple[float, float]:
    """Return wall and CPU seconds of *work*."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def best(rounds: int, prepare) -> tuple[float, float]:
    """Return the least wall and CPU seconds of several fresh runs: the noise of a shared machine is one-sided."""
    results = [timed(prepare()) for _ in range(rounds)]
    return min(wall for wall, _ in results), min(cpu for _, cpu in results)


def open_log(path: Path) -> JournalWriter:
    path.mkdir(exist_ok=True)
    return JournalWriter(path, home_id="bench", owner_public=OWNER, clock=SystemClock())


def journal_work(place: Path, count: int, batch: int):
    """Write as the process does: check, stamp, seal, hash, sync; a checkpoint every quarter of a second."""
    writer = open_log(place / f"log-{time.monotonic_ns()}")
    batches = [[sample(n + k) for k in range(batch)] for n in range(0, count, batch)]

    def work() -> None:
        due = 0.0
        for events in batches:
            writer.record(events, role="gateway")
            if time.monotonic() >= due:
                writer.publish()
                due = time.monotonic() + PUBLISH_EVERY
        writer.close()

    return work


def plain_work(place: Path, count: int, batch: int):
    fd = os.open(place / f"plain-{time.monotonic_ns()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    line = event_schema.stamp(sample(1), role="gateway", device="bench", now=1.7e9) + b"\n"

    def work() -> None:
        for _ in range(0, count, batch):
            os.write(fd, line * batch)
            os.fdatasync(fd)
        os.close(fd)

    return work


def sqlite_work(place: Path, count: int, batch: int):
    database = sqlite3.connect(place / f"db-{time.monotonic_ns()}", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE log (id INTEGER PRIMARY KEY, event BLOB)")
    line = event_schema.stamp(sample(1), role="gateway", device="bench", now=1.7e9)

    def work() -> None:
        for _ in range(0, count, batch):
            database.execute("BEGIN")
            database.executemany("INSERT INTO log (event) VALUES (?)", [(line,)] * batch)
            database.execute("COMMIT")
        database.close()

    return work


def process_rate(place: Path, count: int) -> float:
    """Events per second through the server's socket: one client that keeps 64 one-event requests in flight."""
    writer = open_log(place / "served")
    control_ours, control_theirs = pair()
    ours, theirs = pair()
    from casemate.device.channel import Channel  # noqa: PLC0415 - beside its use

    server = JournalServer(writer, Channel(control_theirs, ipc.AgentToChild), SystemClock())
    server.attach("vault", theirs.detach())
    worker = threading.Thread(target=server.serve)
    worker.start()
    frame = ipc.encode(ipc.Append(id=1, events=[event.model_loaded(model="m", digest="d", now=1.7e9)]))
    answers = ipc.FrameReader(ipc.FromJournal)

    def work() -> None:
        sent = done = 0
        while done < count:
            room = min(BATCH - (sent - done), count - sent)
            if room:
                ours.sendall(frame * room)
                sent += room
            done += len(answers.feed(ours.recv(65536)))

    wall, _ = timed(work)
    control_ours.close()
    worker.join()
    writer.close()
    ours.close()
    return count / wall


def build(place: Path, count: int) -> Path:
    """Make a log of *count* entries of about 300 bytes, fast: stamped events, large frames."""
    path = place / f"verify-{count}"
    line = event_schema.stamp(sample(1), role="gateway", device="bench", now=1.7e9)
    with open_log(path) as writer:
        while writer.size < count:
            writer.append([line] * min(4096, count - writer.size))
            writer.publish()
    return path


def main() -> None:
    args = options(__doc__)
    count, rounds, large = (6_400, 1, 100_000) if args.quick else (32_000, 3, 1_000_000)
    results = HERE.parent / "bench-results"
    results.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="journal-", dir=results))  # a real disk: a sync in memory means nothing
    try:
        publish("journal", [*writing(place, count, rounds), *verifying(place, large)], args)
    finally:
        shutil.rmtree(place)


def writing(place: Path, count: int, rounds: int) -> list[Row]:
    wall, cpu = best(rounds, lambda: journal_work(place, count, BATCH))
    plain, _ = best(rounds, lambda: plain_work(place, count, BATCH))
    sqlite, _ = best(rounds, lambda: sqlite_work(place, count, BATCH))
    single, _ = best(rounds, lambda: journal_work(place, count // 32, 1))
    single_sqlite, _ = best(rounds, lambda: sqlite_work(place, count // 32, 1))
    rate = count / wall
    return [
        Row(
            "durable events, 64 a commit",
            rate,
            "/s",
            "plain file + fdatasync",
            count / plain,
            ">= 10 000",
            rate >= 10_000,
        ),
        Row("durable events, 64 a commit (same run)", rate, "/s", "SQLite WAL FULL", count / sqlite),
        Row("durable events, 1 a commit", count / 32 / single, "/s", "SQLite WAL FULL", count / 32 / single_sqlite),
        Row("durable events through the process, 64 in flight", process_rate(place, count), "/s"),
        Row("CPU of one event (check, stamp, seal, hash)", cpu / count * 1e6, "us"),
    ]


def verifying(place: Path, large: int) -> list[Row]:
    rows = []
    costs = {}
    for size in (large // 10, large):
        path = build(place, size)
        files = LogFiles(path)
        _, cpu = best(2, lambda files=files: lambda: verify(files))
        costs[size] = cpu / size
        rows.append(
            Row(f"verify, {size:.0e} entries", size / cpu, "/s CPU", goal=">= 120 000", met=size / cpu >= 120_000)
        )
        wall, _ = timed(lambda path=path: open_log(path).close())
        rows.append(Row(f"open and recover, {size:.0e} entries", wall * 1000, "ms"))
        used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rows.append(Row(f"disk, {size:.0e} entries", used / size, "B/entry"))
    growth = costs[large] / costs[large // 10]
    rows.append(
        Row("verify, cost of an entry at the larger over the smaller", growth, "x", goal="<= 1.25", met=growth <= 1.25)
    )
    return rows


if __name__ == "__main__":
    sys.exit(main())
