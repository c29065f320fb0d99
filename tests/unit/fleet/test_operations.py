"""Alerts, the webhook, the audit log, backup and restore: against a real database, with a clock of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import io
import json
import tarfile
import threading
import uuid

import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.crypto import client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.errors import BusyError, PolicyDeniedError, UntrustedDataError, UsageError
from casemate.fleet import alerts, backup, commands, devices, enrolment, listing, returns, serve, trend, webhook
from casemate.fleet.audit import Act
from casemate.fleet.commands import Commander
from casemate.fleet.console import Console
from casemate.fleet.context import Fleet
from casemate.fleet.devices import Change
from casemate.fleet.enrolment import Wanted
from casemate.fleet.home import FleetHome, Settings
from casemate.fleet.shared_settings import WebhookSettings, look_up
from casemate.fleet.states import Event, State
from casemate.fleet.store import tables
from casemate.formats import tlog
from casemate.formats.fleet_api import LARGEST, CheckIn, Health
from support import databases


class Clock(SystemClock):
    def __init__(self):
        self.ahead = 0.0

    def wall(self):
        return super().wall() + self.ahead


@pytest.fixture(params=databases.KINDS)
def kind(request):
    return request.param


@contextlib.asynccontextmanager
async def opened(directory, url, clock):
    home = FleetHome(directory)
    await serve.prepare(home, clock, serve.Options(database=url))
    fleet = Fleet.open(home, clock)
    try:
        yield fleet
    finally:
        await fleet.store.close()


async def add(fleet, asset):
    """Enrol a device, without a listener."""
    made = await enrolment.create_token(fleet, Wanted(asset), "test")
    await enrolment.enrol(fleet, made.token, client_certificate.make_request(EcKey.generate()))
    async with fleet.store.read() as connection:
        return (await devices.find(connection, asset)).id


async def kinds(fleet):
    alert = tables.alert.c
    async with fleet.store.read() as connection:
        rows = await connection.execute(sa.select(alert.kind).where(alert.closed.is_(None)).order_by(alert.kind))
        return [row.kind for row in rows]


def commander(fleet):
    return Commander(fleet.settings.fleet, fleet.home.signing_key("commands"))


def test_an_alert_opens_once_and_ends_with_what_was_wrong(tmp_path, kind):
    async def work():
        clock = Clock()
        async with opened(tmp_path / "fleet", databases.new(kind, tmp_path), clock) as fleet:
            device = await add(fleet, "till")
            fleet.seen.put(device, CheckIn(state="ok", agent="t", clock=0.0), clock.wall())
            await fleet.seen.flush()
            assert await alerts.sweep(fleet) == 0
            clock.ahead = 400
            assert await alerts.sweep(fleet) == 1
            assert await alerts.sweep(fleet) == 0
            assert await kinds(fleet) == ["offline"]
            fleet.seen.put(device, CheckIn(state="ok", agent="t", clock=0.0), clock.wall())
            await fleet.seen.flush()
            await alerts.sweep(fleet)
            assert await kinds(fleet) == []
            clock.ahead = 6.5 * 86400
            await alerts.sweep(fleet)
            assert await kinds(fleet) == ["certificate", "offline"]
            async with fleet.store.write() as connection:
                row = await devices.find(connection, device)
                assert not await returns.is_let_in(connection, fleet.audit, row, clock.wall())
            await alerts.sweep(fleet)
            assert await kinds(fleet) == ["certificate", "offline", "return"]
            async with fleet.store.write() as connection:
                assert [one.id for one in await returns.waiting(connection)] == [device]
                approve = Change(Event.APPROVE, "test", clock.wall())
                assert await devices.apply(connection, fleet.audit, device, approve) is State.ENROLLED
                assert not await returns.waiting(connection)
                assert await returns.is_let_in(connection, fleet.audit, row, clock.wall())
                late = clock.wall() + returns.APPROVED_SECONDS + 1
                assert not await returns.is_let_in(connection, fleet.audit, row, late), "a yes does not wait for ever"
                await returns.prune(connection, late + returns.FORGOTTEN_SECONDS + 1)
                assert await returns.of(connection, device) is None
            await alerts.sweep(fleet)
            assert await kinds(fleet) == ["certificate", "offline"]
            async with fleet.store.write() as connection:
                change = Change(Event.REVOKE, "test", clock.wall())
                await devices.apply(connection, fleet.audit, device, change)
            await alerts.sweep(fleet)
            assert await kinds(fleet) == []  # who is out needs nobody

    asyncio.run(work())


def test_a_failed_integrity_check_stays_until_a_person_closes_it(tmp_path, kind):
    async def work():
        clock = Clock()
        async with opened(tmp_path / "fleet", databases.new(kind, tmp_path), clock) as fleet:
            device = await add(fleet, "till")
            health = Health(integrity_failures=1, temperature_c=50.0)
            fleet.seen.put(device, CheckIn(state="ok", agent="t", clock=0.0, health=health), clock.wall())
            fleet.seen.put(device, CheckIn(state="ok", agent="t", clock=0.0, health=Health(requests=4)), clock.wall())
            await fleet.seen.flush()
            fleet.seen.put(device, CheckIn(state="ok", agent="t", clock=0.0, health=Health(requests=3)), clock.wall())
            await fleet.seen.flush()
            async with fleet.store.read() as connection:
                rows = (await connection.execute(sa.select(tables.health_rollup))).all()
            assert sum(row.requests for row in rows) == 7
            assert max(row.temperature_max for row in rows) == 50.0
            assert sum(row.samples for row in rows) == 3
            await alerts.sweep(fleet)
            assert await kinds(fleet) == ["integrity"]
            clock.ahead = 250
            fleet.seen.put(device, CheckIn(state="ok", agent="t", clock=0.0), clock.wall())
            await fleet.seen.flush()
            await alerts.sweep(fleet)
            assert await kinds(fleet) == ["integrity"]

    asyncio.run(work())


def test_a_device_that_counts_without_end_silences_no_other(tmp_path, kind):
    """A sum that no column holds would fail the batch of all, and be tried again with each that follows."""

    async def work():
        clock = Clock()
        async with opened(tmp_path / "fleet", databases.new(kind, tmp_path), clock) as fleet:
            most = Health(requests=LARGEST, refusals=LARGEST, integrity_failures=LARGEST)
            for _ in range(2):
                for _ in range(1100):  # above 2^63 in all
                    fleet.seen.put("hostile", CheckIn(state="ok", agent="t", clock=0.0, health=most), clock.wall())
                fleet.seen.put("honest", CheckIn(state="ok", agent="t", clock=0.0), clock.wall())
                assert await fleet.seen.flush() == 2
            async with fleet.store.read() as connection:
                rows = (await connection.execute(sa.select(tables.health_rollup))).all()
            assert {(row.device_id, row.requests) for row in rows} == {("hostile", LARGEST)}
            assert sum(row.samples for row in rows) == 2200
            await trend.sample(fleet)

    asyncio.run(work())


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.headers[webhook.HEADER], body))
        self.send_response(self.server.answer)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.got, server.answer = [], 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_webhook_is_signed_tried_again_and_never_followed(tmp_path, receiver):
    async def work():
        clock = Clock()
        async with opened(tmp_path / "fleet", None, clock) as fleet:
            console = Console(fleet, commander(fleet), "test")
            device = await add(fleet, "till")
            secret = await console.set_webhook(f"http://127.0.0.1:{receiver.server_port}/hook")
            async with fleet.store.write() as connection:
                await alerts.raise_for(connection, fleet, "journal", device, "its history was rewritten")
            for refused in (500, 302):
                receiver.answer = refused
                assert await webhook.deliver(fleet) == 0
                assert await webhook.deliver(fleet) == 0  # not before its time
                clock.ahead += 120
            receiver.answer = 204
            assert await webhook.deliver(fleet) == 1
            assert await webhook.deliver(fleet) == 0
            return secret

    secret = asyncio.run(work())
    assert len(receiver.got) == 3
    signature, body = receiver.got[-1]
    assert signature == webhook.sign(secret.encode(), body)
    assert signature != webhook.sign(b"another", body)
    assert json.loads(body)["kind"] == "journal"


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://x", "https://a:b@host/", "file:///etc/passwd", "x"])
def test_a_webhook_in_clear_or_elsewhere_is_refused(url):
    with pytest.raises(UsageError):
        webhook.check_url(url)


def test_the_audit_log_proves_itself_and_shows_what_was_changed(tmp_path, kind):
    async def work():
        async with opened(tmp_path / "fleet", databases.new(kind, tmp_path), Clock()) as fleet:
            for number in range(260):  # past the first full tile
                async with fleet.store.write() as connection:
                    await fleet.audit.append(connection, Act("test", "thing", detail={"n": number}), 1.0)
            async with fleet.store.read() as connection:
                kept = await fleet.audit.checkpoint(connection)
                assert (await fleet.audit.verify(connection, kept)).size == 260
            entry = tables.audit_event
            old = sa.select(entry.c.entry).where(entry.c.seq == 7)
            async with fleet.store.write() as connection:
                before = bytes((await connection.execute(old)).scalar_one())
                changed = sa.update(entry).where(entry.c.seq == 7).values(entry=before.replace(b"test", b"evil"))
                await connection.execute(changed)
            async with fleet.store.read() as connection:
                with pytest.raises(UntrustedDataError) as caught:
                    await fleet.audit.verify(connection)
            assert caught.value.check == "audit-root"
            # the server itself rewrites: entries, tree and signature fit each other; the kept checkpoint does not
            async with fleet.store.write() as connection:
                await connection.execute(sa.delete(entry))
                await connection.execute(sa.delete(tables.audit_tree))
                for number in range(261):
                    await fleet.audit.append(connection, Act("test", "other", detail={"n": number}), 1.0)
            async with fleet.store.read() as connection:
                await fleet.audit.verify(connection)
                with pytest.raises(UntrustedDataError) as caught:
                    await fleet.audit.verify(connection, kept)
            assert caught.value.check == "audit-history"
            return tlog.open_checkpoint(kept, [fleet.audit.verifier])

    assert asyncio.run(work()).size == 260


def test_an_act_that_fails_leaves_no_entry(tmp_path, kind):
    async def release(fleet, device):
        async with fleet.store.write() as connection:
            change = Change(Event.RELEASE, "test", 1.0)
            await devices.apply(connection, fleet.audit, device, change, commander(fleet))

    async def work():
        async with opened(tmp_path / "fleet", databases.new(kind, tmp_path), Clock()) as fleet:
            device = await add(fleet, "till")
            async with fleet.store.read() as connection:
                before = (await fleet.audit.verify(connection)).size
            with pytest.raises(PolicyDeniedError):
                await release(fleet, device)
            async with fleet.store.read() as connection:
                assert (await fleet.audit.verify(connection)).size == before

    asyncio.run(work())


@pytest.mark.parametrize("target", databases.KINDS)
def test_a_backup_restores_into_either_database(tmp_path, kind, target):
    async def work():
        clock, out = Clock(), tmp_path / "fleet.backup"
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        async with opened(tmp_path / "fleet", databases.new(kind, tmp_path), clock) as fleet:
            device = await add(fleet, "till")
            async with fleet.store.write() as connection:
                change = Change(Event.QUARANTINE, "test", clock.wall())
                await devices.apply(connection, fleet.audit, device, change, commander(fleet))
            signed = await Console(fleet, commander(fleet), "test").set_webhook("https://hooks.example.org/T0/B1")
            await backup.write(fleet, out, "test")
            with pytest.raises(BusyError):
                await backup.write(fleet, out, "test")
            async with fleet.store.read() as connection:
                before = await listing.show(connection, "till", clock.wall())
        url = databases.new(target, elsewhere)
        home = FleetHome(tmp_path / "again")
        await backup.restore(out, home, clock, url, "test")
        assert (home.path / "keys" / "commands.key").stat().st_mode & 0o777 == 0o600
        async with opened(home.path, None, clock) as fleet:
            async with fleet.store.read() as connection:
                after = await listing.show(connection, "till", clock.wall())
                assert (await fleet.audit.verify(connection)).size > 3
            assert after == before
            held = await look_up(fleet, WebhookSettings)
            assert (held.settings.url, held.secret) == ("https://hooks.example.org/T0/B1", signed.encode())
            async with fleet.store.write() as connection:
                change = Change(Event.RELEASE, "test", clock.wall())
                await devices.apply(connection, fleet.audit, device, change, commander(fleet))
                row = await devices.find(connection, device)
            assert row.command_sequence > backup.SEQUENCE_GAP  # a number the device has not obeyed
            await add(fleet, "another")
        return out.stat().st_mode & 0o777

    assert asyncio.run(work()) == 0o600


def made_backup(tmp_path):
    async def work():
        async with opened(tmp_path / "fleet", None, Clock()) as fleet:
            await backup.write(fleet, tmp_path / "good", "test")

    asyncio.run(work())
    with tarfile.open(tmp_path / "good", "r:gz") as archive:
        return [(entry, archive.extractfile(entry).read()) for entry in archive]


def rewritten(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for entry, data in members:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def stray(name, **more):
    entry = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(entry, key, value)
    return entry, b""


def test_a_forged_or_damaged_backup_writes_nothing(tmp_path):
    members = made_backup(tmp_path)
    changed = [(entry, data + b" " if entry.name == "ca/root.pem" else data) for entry, data in members]
    outside = tmp_path / "evil.pem"
    through = "settings.json" + "/.." * 40 + str(outside)  # begins like a name that a backup has
    bad = {
        "changed": changed,
        "short": members[:-1],
        "climbs": [stray("../../evil.pem"), *members],
        "through": [stray(through), *members],
        "absolute": [stray("/etc/evil.pem"), *members],
        "link": [stray("ca/evil.pem", type=tarfile.SYMTYPE, linkname="/etc/passwd"), *members],
        "twice": [members[0], *members],
        "more": [stray("ca/another.pem"), *members],
    }
    for name, content in bad.items():
        home = FleetHome(tmp_path / f"restored-{name}")
        with pytest.raises(UntrustedDataError):
            asyncio.run(backup.restore(rewritten(tmp_path / name, content), home, Clock(), None, "test"))
        assert not home.path.exists(), name
        assert not outside.exists(), name
    (tmp_path / "noise").write_bytes(b"x" * 99)
    with pytest.raises(UntrustedDataError):
        asyncio.run(backup.restore(tmp_path / "noise", FleetHome(tmp_path / "n"), Clock(), None, "test"))
    asyncio.run(backup.restore(rewritten(tmp_path / "same", members), FleetHome(tmp_path / "ok"), Clock(), None, "t"))


def test_a_wipe_that_waited_too_long_is_signed_anew(tmp_path):
    async def work():
        clock = Clock()
        async with opened(tmp_path / "fleet", None, clock) as fleet:
            device, signer = await add(fleet, "lost"), commander(fleet)
            async with fleet.store.write() as connection:
                change = Change(Event.WIPE, "test", clock.wall())
                assert await devices.apply(connection, fleet.audit, device, change, signer) is State.WIPING
            clock.ahead = 8 * 86400
            async with fleet.store.write() as connection:
                assert await signer.renew(connection, clock.wall()) == 1
                assert await signer.renew(connection, clock.wall()) == 0
                row = await devices.find(connection, device)
            return row.command_sequence, row.commands_waiting

    assert asyncio.run(work()) == (2, 1)


def test_a_hundred_thousand_rows_come_in_pages_of_one_order(tmp_path, kind):
    async def work():
        async with opened(tmp_path / "fleet", databases.new(kind, tmp_path), Clock()) as fleet:
            rows = [
                {"id": str(uuid.UUID(int=number)), "asset": f"a-{number // 2:04}", "state": "enrolled",
                 "enrolled_by": "token", "created": 1.0, "changed": 1.0, "key_digest": "0" * 64}
                for number in range(500)
            ]  # fmt: skip
            async with fleet.store.write() as connection:
                await connection.execute(sa.insert(tables.device), rows)
            found, cursor = [], ""
            async with fleet.store.read() as connection:
                while True:
                    page = await listing.page(connection, listing.Filter(), 1.0, cursor=cursor, size=77)
                    found += [each["id"] for each in page.devices]
                    cursor = page.cursor
                    if not cursor:
                        return found, [row["id"] for row in rows]

    found, expected = asyncio.run(work())
    assert found == expected


@pytest.mark.parametrize(
    ("names", "origin"),
    [
        ((), "https://localhost:8443"),
        (("10.0.0.9", "::1", "fleet.example"), "https://fleet.example:8443"),
        (("10.0.0.9",), "https://localhost:8443"),
    ],
)
def test_people_open_a_name_where_devices_may_have_only_an_address(names, origin):
    assert serve.relying_party(Settings("f", "sqlite://", names=names), port=8443).origin == origin


def test_what_must_hold_and_was_refused_is_ordered_again_and_nothing_else_is(kind, tmp_path):
    async def work():
        clock = Clock()
        async with opened(tmp_path / "fleet", databases.new(kind, tmp_path), clock) as fleet:
            signer, command = commander(fleet), tables.command
            for asset, event in (("lost", Event.WIPE), ("cut", Event.QUARANTINE), ("free", Event.QUARANTINE)):
                name = await add(fleet, asset)
                async with fleet.store.write() as connection:
                    await devices.apply(connection, fleet.audit, name, Change(event, "Ada", clock.wall()), signer)
            async with fleet.store.write() as connection:
                await devices.apply(connection, fleet.audit, "free", Change(Event.RELEASE, "Ada", clock.wall()), signer)
                refused = sa.update(command).values(state="failed", finished=clock.wall())
                await connection.execute(refused)

            async def sweep():
                async with fleet.store.write() as connection:
                    await signer.renew(connection, clock.wall())
                    rows = await connection.execute(
                        sa.select(tables.device.c.asset, command.c.verb, command.c.sequence)
                        .join_from(command, tables.device)
                        .where(command.c.state == "waiting")
                        .order_by(tables.device.c.asset)
                    )
                    return [tuple(row) for row in rows]

            assert await sweep() == [], "not at once: it would be refused again"
            clock.ahead += commands.REPEAT + 1
            assert await sweep() == [("cut", "quarantine", 2), ("lost", "wipe", 2)]
            assert await sweep() == [("cut", "quarantine", 2), ("lost", "wipe", 2)], "once"

    asyncio.run(work())


def test_a_device_is_found_by_the_tag_it_carried_last(kind, tmp_path):
    async def work():
        async with opened(tmp_path / "fleet", databases.new(kind, tmp_path), Clock()) as fleet:
            first = await add(fleet, "till-1")
            second = await add(fleet, "till-1")
            async with fleet.store.write() as connection:
                assert (await devices.find(connection, "till-1")).id == second, "the one that carries it"
                gone = sa.update(tables.device).where(tables.device.c.id == second)
                await connection.execute(gone.values(state="wiped"))
                assert (await devices.find(connection, "till-1")).id == second, "the last that did"
                assert (await listing.show(connection, "till-1", 1.0))["state"] == "wiped"
                assert (await devices.find(connection, first)).state == "replaced"

    asyncio.run(work())
