"""The fleet's server: check-ins batched and row by row, enrolment, the list of 100,000 devices, idle wake streams.

Check-ins go over mutual TLS with keep-alive to a real server on a real PostgreSQL. The peer, in the same run, is the
same server that writes each check-in in a transaction of its own before it answers. CPU is the server process's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import sqlalchemy as sa
from report import Row, options, publish

from casemate.clock import SystemClock
from casemate.crypto import authority, client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.fleet import enrolment, identity, listing, serve
from casemate.fleet.context import Fleet
from casemate.fleet.enrolment import Wanted
from casemate.fleet.home import FleetHome
from casemate.fleet.store import tables
from support import databases
from support.fleet import Device, Server, until

CONNECTIONS = 32
TICK = os.sysconf("SC_CLK_TCK")
BODY = b'{"state":"ok","agent":"0.1.0","clock":1790000000.5,"health":{"temperature_c":51.5,"load":0.4,"requests":12}}'
REQUEST = (
    b"POST /device/v1/checkin HTTP/1.1\r\nHost: fleet\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    % (len(BODY), BODY)
)


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def database_cpu() -> float:
    """Return the CPU of every PostgreSQL process below our cluster."""
    main = databases.postgresql()
    pid = int((Path(str(main.pgdata)) / "postmaster.pid").read_text(encoding="ascii").split()[0])
    total = 0.0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])
            if parent == pid or int(entry.name) == pid:
                total += cpu_of(int(entry.name))
    return total


def memory_of(pid: int) -> int:
    """Return the proportional set size in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(line)


class Child(Server):
    """The server started by this file, so that a variant can be measured."""

    def start(self) -> Child:
        self.variant, self.options = self.options, []
        command = [sys.executable, __file__, "--serve", str(self.directory), *self.variant]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.log.read_text())
        people, devices, enrol = line.split()
        self.addresses = {"people": people, "devices": devices, "enrol": enrol}
        return self


@contextlib.contextmanager
def child(directory: Path, *variant: str) -> Iterator[Child]:
    server = Child(directory, *variant)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def serve_variant(
    directory: Path, *, database: str | None, row_by_row: bool, fresh: float | None, devices: str
) -> None:
    """Run the real server; *row_by_row* writes each check-in before it is answered."""
    if fresh is not None:
        identity.FRESH = fresh
    if row_by_row:
        made = serve.devices_app

        def slow(fleet, peers):
            app = made(fleet, peers)

            async def wrapped(scope, receive, send):
                async def after(message):
                    if message["type"] == "http.response.start" and scope["path"].endswith("/checkin"):
                        await fleet.seen.flush()
                    await send(message)

                await app(scope, receive, after)

            return wrapped

        serve.devices_app = slow

    async def ready(_fleet, where):
        print(where.people, where.devices, where.enrol, flush=True)

    home = FleetHome(directory)
    asyncio.run(serve.serve(home, SystemClock(), serve.Options(database=database, devices=devices), ready))


async def load(server: Server, devices: list[Device], seconds: float) -> tuple[int, list[float]]:
    """Check in over *CONNECTIONS* kept-alive connections for *seconds*; returns how many, and how long each took."""
    host, port = server.address("devices")
    contexts = [server.context(device.identity) for device in devices]
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def one(context: ssl.SSLContext) -> None:
        reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="127.0.0.1")
        while (started := time.perf_counter()) < end:
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head)
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            taken.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(one(contexts[number % len(contexts)]) for number in range(CONNECTIONS)))
    return len(taken), taken


def measure(server: Server, devices: list[Device], seconds: float) -> dict[str, float]:
    asyncio.run(load(server, devices, 1.0))  # warm
    app, base, started = cpu_of(server.process.pid), database_cpu(), time.perf_counter()
    count, taken = asyncio.run(load(server, devices, seconds))
    wall = time.perf_counter() - started
    app, base = cpu_of(server.process.pid) - app, database_cpu() - base
    p99 = statistics.quantiles(taken, n=100)[98]
    return {"rate": count / wall, "app": app / count * 1e6, "database": base / count * 1e6, "p99": p99 * 1000}


def checkins(place: Path, seconds: float) -> list[Row]:
    url = databases.new("postgresql", place)
    directory = place / "fleet"
    with child(directory, "--database", url) as server:
        devices = [Device(server, place, f"bench-{number}").enrol() for number in range(CONNECTIONS)]
        batched = measure(server, devices, seconds)
    with child(directory, "--fresh", "0") as server:
        looked_up = measure(server, devices, seconds)
    with child(directory, "--row-by-row") as server:
        single = measure(server, devices, seconds)
    per_core = 1e6 / batched["app"]
    ratio = batched["rate"] / single["rate"]
    whole = (single["app"] + single["database"]) / (batched["app"] + batched["database"])
    return [
        Row("check-ins a second and core of the server, mTLS, PostgreSQL", per_core, "/s",
            goal=">= 3000", met=per_core >= 3000),
        Row("check-ins a second, batched", batched["rate"], "/s", "row by row", single["rate"], ">= 5x", ratio >= 5),
        Row("CPU of a check-in, server", batched["app"], "us", "row by row", single["app"]),
        Row("CPU of a check-in, database", batched["database"], "us", "row by row", single["database"]),
        Row("CPU of a check-in, both: row by row over batched", whole, "x"),
        Row("CPU of a check-in whose identity is looked up each time", looked_up["app"], "us",
            "held a second", batched["app"]),
        Row("p99 of a check-in at full load", batched["p99"], "ms", "row by row", single["p99"]),
        Row("100,000 devices at 60 s: cores of the server", looked_up["app"] * 1e-6 * 100_000 / 60, "cores", goal="< 1",
            met=looked_up["app"] * 1e-6 * 100_000 / 60 < 1),
        Row("100,000 devices at 60 s: cores of the database", looked_up["database"] * 1e-6 * 100_000 / 60, "cores",
            goal="< 0.2", met=looked_up["database"] * 1e-6 * 100_000 / 60 < 0.2),
    ]  # fmt: skip


def streams(place: Path, count: int) -> list[Row]:
    with child(place / "streams") as server:
        device = [Device(server, place, f"stream-{number}").enrol() for number in range(count // 2)]
        before = memory_of(server.process.pid)
        held = [each.stream() for each in device for _ in range(2)]
        for stream in held:
            stream.event()
        after = memory_of(server.process.pid)
        started = time.perf_counter()
        server.cli("device", "revoke", device[0].asset)
        asked = time.perf_counter()
        until(lambda: device[0].checkin().status == 401)
        refused = time.perf_counter() - asked
        with contextlib.closing(held[0]):
            while held[0].event() != "bye":
                pass
        ended = time.perf_counter() - started
        for stream in held[1:]:
            stream.close()
    each = (after - before) / len(held)
    return [
        Row(f"memory of an idle wake stream ({len(held)} streams, mTLS)", each, "KiB", goal="<= 50", met=each <= 50),
        Row("revoked -> next request refused", refused, "s", goal="<= 1", met=refused <= 1),
        Row("command to revoke given -> open stream ended", ended, "s"),
    ]


async def issuing(place: Path, count: int, database: str | None, name: str) -> list[Row]:
    home, clock = FleetHome(place / f"est-{name}"), SystemClock()
    await serve.prepare(home, clock, serve.Options(database=database))
    fleet = Fleet.open(home, clock)
    requests = [client_certificate.make_request(EcKey.generate()) for _ in range(count)]
    tokens = [(await enrolment.create_token(fleet, Wanted(f"d-{number}"), "bench")).token for number in range(count)]
    started = resource.getrusage(resource.RUSAGE_SELF)
    for token, request in zip(tokens, requests, strict=True):
        await enrolment.enrol(fleet, token, request)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    cost = (ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime) / count * 1000
    begun = time.process_time()
    for request in requests:
        fleet.authority.issue_device(authority.parse_csr(request), str(uuid.uuid4()), clock.wall())
    signing = (time.process_time() - begun) / count * 1000
    await fleet.store.close()
    return [
        Row(f"enrolment with a token, whole transaction and audit entry, {name}", cost, "ms CPU"),
        Row(f"EST issue: request checked, certificate signed ({name} run)", signing, "ms CPU",
            goal="<= 1", met=signing <= 1),
    ]  # fmt: skip


async def listed(place: Path, count: int, database: str | None, name: str) -> list[Row]:
    home, clock = FleetHome(place / f"list-{name}"), SystemClock()
    await serve.prepare(home, clock, serve.Options(database=database))
    fleet = Fleet.open(home, clock)
    now = clock.wall()
    for start in range(0, count, 5000):
        numbers = range(start, min(start + 5000, count))
        rows = [
            {"id": str(uuid.uuid4()), "asset": f"till-{number:06}", "group_name": f"g{number % 20}",
             "state": "enrolled",
             "enrolled_by": "token", "created": now, "changed": now, "key_digest": "0" * 64, "certificate_expires": now}
            for number in numbers
        ]  # fmt: skip
        seen = [{"device_id": row["id"], "last_seen": now, "state": "ok"} for row in rows]
        async with fleet.store.write() as connection:
            await connection.execute(sa.insert(tables.device), rows)
            await connection.execute(sa.insert(tables.device_seen), seen)
    if fleet.store.is_postgresql:
        async with fleet.store.write() as connection:
            await connection.exec_driver_sql("ANALYZE")
    taken, cursor = [], ""
    chosen = [
        listing.Filter(),
        listing.Filter(group="g7"),
        listing.Filter(asset="till-05"),
        listing.Filter(group="none"),
    ]
    for number in range(120):
        begun = time.perf_counter()
        async with fleet.store.read() as connection:
            page = await listing.page(connection, chosen[number % 4], now, cursor=cursor if number % 4 == 0 else "")
        taken.append(time.perf_counter() - begun)
        cursor = page.cursor if number % 4 == 0 else cursor
    await fleet.store.close()
    p95 = statistics.quantiles(taken, n=20)[18] * 1000
    return [Row(f"device list of {count:,}, page of 100, p95, {name}", p95, "ms", goal="<= 150", met=p95 <= 150)]


def first_device(place: Path) -> list[Row]:
    started = time.perf_counter()
    server = Server(place / "first").start()
    try:
        Device(server, place, "first").enrol().checkin()
        spent = time.perf_counter() - started
    finally:
        server.stop()
    return [Row("empty directory -> first device enrolled and checked in", spent, "s", goal="<= 60", met=spent <= 60)]


def main() -> int:
    if "--serve" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--serve", type=Path)
        parser.add_argument("--database")
        parser.add_argument("--row-by-row", action="store_true")
        parser.add_argument("--fresh", type=float)
        parser.add_argument("--devices", default="127.0.0.1:0")
        given = parser.parse_args()
        serve_variant(given.serve, database=given.database, row_by_row=given.row_by_row, fresh=given.fresh,
                      devices=given.devices)  # fmt: skip
        return 0
    args = options(__doc__)
    seconds, count, many, enrolled = (2, 40, 5_000, 50) if args.quick else (10, 400, 100_000, 300)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        place.chmod(0o755)
        rows = first_device(place) + checkins(place, seconds) + streams(place, count)
        for name in databases.KINDS:
            (place / name).mkdir()
            rows += asyncio.run(issuing(place, enrolled, databases.new(name, place / name), name))
            rows += asyncio.run(
                listed(place, many, databases.new(name, place / name) if name != "sqlite" else None, name)
            )
    publish("fleet", rows, args)
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
