"""More than one server and more than a few devices: a herd that returns, two servers beside one, a long even load.

The herd is connections over mutual TLS that all begin at once, from addresses of 127/8, with the waits of the real
device. The even load is 100,000 enrolled devices that check in once a minute each, as a proxy passes them on: their
certificates come in the proxy's header, on a unix socket, and every one is checked and looked up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import sqlalchemy as sa
from bench_fleet import BODY, CONNECTIONS, REQUEST, child, cpu_of, database_cpu, load, main, memory_of
from report import Row, options, publish

from casemate.clock import SystemClock
from casemate.crypto import authority, x509
from casemate.crypto.ecdsa import EcKey
from casemate.fleet import pki, serve
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.listeners import allow_many
from casemate.fleet.store import tables
from casemate.link import pace
from support import databases
from support.fleet import Device, Server

IDENTITIES = 20
EVERY = 60.0


class Herd:
    """Devices that come back at the same moment."""

    def __init__(self, server: Server, contexts: list[ssl.SSLContext], count: int) -> None:
        self.place = server.address("devices")
        self.contexts = contexts
        self.count = count
        self.entered: list[float] = []
        self.broken = 0
        self.asked_to_wait = 0
        self.draw = random.Random(1).random

    async def run(self) -> float:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(self.count):
                group.create_task(self._one(number, began))
        return time.perf_counter() - began

    async def _one(self, number: int, began: float) -> None:
        steps, address = pace.Pace(self.draw), f"127.{1 + number // 60_000}.{number // 250 % 240}.{1 + number % 250}"
        while True:
            retry_after = 0.0
            try:
                async with asyncio.timeout(40):
                    status, retry_after = await self._visit(self.contexts[number % len(self.contexts)], address)
                if status == 200:
                    self.entered.append(time.perf_counter() - began)
                    return
                self.asked_to_wait += 1
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                self.broken += 1
            await asyncio.sleep(steps.failed(retry_after))

    async def _visit(self, context: ssl.SSLContext, address: str) -> tuple[int, float]:
        reader, writer = await asyncio.open_connection(
            *self.place, ssl=context, server_hostname="127.0.0.1", local_addr=(address, 0)
        )
        try:
            writer.write(REQUEST)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            after = head.partition(b"retry-after: ")[2].split(b"\r\n")[0]
            return int(head[9:12]), float(after or 0)
        finally:
            writer.transport.abort()


def herd(place: Path, count: int) -> list[Row]:
    allow_many()
    with child(place / "herd") as server:
        devices = [Device(server, place, f"herd-{number}").enrol() for number in range(IDENTITIES)]
        crowd = Herd(server, [server.context(device.identity) for device in devices], count)
        spent = asyncio.run(crowd.run())
        alive = devices[0].checkin().status == 200
    half = statistics.median(crowd.entered)
    return [
        Row(f"{count:,} devices return at once: all served after", spent, "s",
            met=alive and len(crowd.entered) == count),
        Row("the same: half of them after", half, "s"),
        Row("the same: connections that broke and were tried again", crowd.broken, "times"),
        Row("the same: answers that said when to come again", crowd.asked_to_wait, "times"),
    ]  # fmt: skip


async def both(servers: list[Server], devices: list[Device], seconds: float) -> int:
    return sum(count for count, _ in await asyncio.gather(*(load(server, devices, seconds) for server in servers)))


def replicas(place: Path, seconds: float) -> list[Row]:
    """CPU of a check-in with one server and with two, whose load together is the same."""
    import shutil  # noqa: PLC0415

    directory = place / "one"
    with child(directory, "--database", databases.new("postgresql", place)) as first:
        devices = [Device(first, place, f"r-{number}").enrol() for number in range(CONNECTIONS)]
        asyncio.run(both([first], devices, 1.0))
        before = cpu_of(first.process.pid)
        count = asyncio.run(both([first], devices, seconds))
        one = (cpu_of(first.process.pid) - before) / count * 1e6
        shutil.copytree(directory, place / "two")
        with child(place / "two") as second:
            pair = [first, second]
            asyncio.run(both(pair, devices, 1.0))
            before = sum(cpu_of(each.process.pid) for each in pair)
            count = asyncio.run(both(pair, devices, seconds))
            two = (sum(cpu_of(each.process.pid) for each in pair) - before) / count * 1e6
    return [
        Row(
            "CPU of a check-in, two servers on one PostgreSQL",
            two,
            "us",
            "one server",
            one,
            "<= 1.1x",
            two <= 1.1 * one,
        )
    ]


async def enrolled(home: FleetHome, url: str, count: int) -> list[bytes]:
    """Make a fleet with *count* devices; returns each one's request as a proxy would send it."""
    await serve.prepare(home, SystemClock(), serve.Options(database=url))
    fleet, key = Fleet.open(home, SystemClock()), EcKey.generate()
    now, requests = time.time(), []
    for start in range(0, count, 2000):
        names = [str(uuid.uuid4()) for _ in range(min(2000, count - start))]
        certificates = [fleet.authority.issue_device(key.public, name, now) for name in names]
        rows = [
            {"id": name, "asset": f"till-{start + number:06}", "state": "enrolled", "enrolled_by": "token",
             "created": now, "changed": now, "key_digest": "0" * 64, "certificate_expires": now + pki.DEVICE_SECONDS}
            for number, name in enumerate(names)
        ]  # fmt: skip
        certs = []
        for name, der in zip(names, certificates, strict=True):
            facts = authority.facts(der)
            certs.append(
                {"serial": facts.serial, "device_id": name, "state": "active", "certificate": der,
                 "not_before": facts.not_before, "not_after": facts.not_after}
            )  # fmt: skip
        async with fleet.store.write() as connection:
            await connection.execute(sa.insert(tables.device), rows)
            await connection.execute(sa.insert(tables.device_cert), certs)
        requests += [_proxied(der) for der in certificates]
    async with fleet.store.write() as connection:
        await connection.exec_driver_sql("ANALYZE")
    await fleet.store.close()
    return requests


def _proxied(certificate: bytes) -> bytes:
    head = b"POST /device/v1/checkin HTTP/1.1\r\nHost: fleet\r\nContent-Type: application/json\r\n"
    named = b"X-Casemate-Client-Cert: " + quote(x509.to_pem(certificate)).encode() + b"\r\n"
    return head + named + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


async def even(path: Path, requests: list[bytes], seconds: float) -> tuple[int, list[float]]:
    """Send each device's request once a minute, evenly; returns how many, and how long each took."""
    taken: list[float] = []
    gap, order = EVERY / len(requests), iter(range(10**12))
    began = time.perf_counter()

    async def one() -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        while (due := (number := next(order)) * gap) < seconds:
            if (wait := began + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            started = time.perf_counter()
            writer.write(requests[number % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head)
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
            taken.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return len(taken), taken


def soak(place: Path, count: int, seconds: float) -> list[Row]:
    directory, path = place / "soak", place / "devices.sock"
    requests = asyncio.run(enrolled(FleetHome(directory), databases.new("postgresql", place), count))
    with child(directory, "--devices", f"unix:{path}") as server:
        asyncio.run(even(path, requests, min(EVERY, seconds) / 2))  # warm: what is held is held
        pid, sizes, app, base = server.process.pid, [], cpu_of(server.process.pid), database_cpu()
        began, done, taken = time.perf_counter(), 0, []
        sizes.append(memory_of(pid))
        for _ in range(10):
            number, times = asyncio.run(even(path, requests, seconds / 10))
            done, taken = done + number, taken + times
            sizes.append(memory_of(pid))
            print(
                f"  {time.perf_counter() - began:6.0f} s  {done} check-ins  {sizes[-1]} KiB",
                file=sys.stderr,
                flush=True,
            )
        spent = time.perf_counter() - began
        app, base = (cpu_of(pid) - app) / spent, (database_cpu() - base) / spent
    grown = sizes[-1] - sizes[len(sizes) // 2]
    whole = done / spent >= 0.95 * count / EVERY
    p99 = statistics.quantiles(taken, n=100)[98] * 1000
    return [
        Row(f"{count:,} devices at {EVERY:.0f} s for {spent:.0f} s: cores of the server", app, "cores", goal="< 1",
            met=whole and app < 1),
        Row("the same: cores of the database", base, "cores", goal="< 0.2", met=whole and base < 0.2),
        Row("the same: check-ins a second that were answered", done / spent, "/s", goal=f">= {count / EVERY:.0f}",
            met=whole),
        Row("the same: p99", p99, "ms"),
        Row("the same: memory of the server at the end", sizes[-1] / 1024, "MiB",
            "half-way", sizes[len(sizes) // 2] / 1024),
        Row("the same: growth in the second half", grown, "KiB", goal="<= 5 %", met=grown <= 0.05 * sizes[-1]),
    ]  # fmt: skip


def run() -> int:
    if "--serve" in sys.argv:
        return main()
    args = options(__doc__)
    crowd, seconds, count, long = (500, 2, 2_000, 20) if args.quick else (10_000, 8, 100_000, 600)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        place.chmod(0o755)
        rows = replicas(place, seconds) + herd(place, crowd) + soak(place, count, long)
    publish("scale", rows, args)
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(run())
