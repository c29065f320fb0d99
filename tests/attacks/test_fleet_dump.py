"""Somebody has the database, or a dump of it, and not the fleet's keys: what people set for all servers stays theirs.

Control: the same settings, sealed by nothing, are in the dump in clear.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib

import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.errors import NotFoundError, OperationError
from casemate.fleet import mailing, serve, shared_settings, signon
from casemate.fleet.accounts.provider import Provider
from casemate.fleet.commands import Commander
from casemate.fleet.console import Console
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.shared_settings import MailSettings, OidcSettings, WebhookSettings
from casemate.fleet.store import desk, tables
from support import databases

PASSWORD, CLIENT_SECRET = b"hunter2-of-the-mail-server", b"hunter3-of-the-provider"
HOOK = "https://hooks.example.org/services/hunter4-in-the-path"


@contextlib.asynccontextmanager
async def fleet_in(directory, url=None):
    await serve.prepare(FleetHome(directory), SystemClock(), serve.Options(database=url))
    fleet = Fleet.open(FleetHome(directory), SystemClock())
    try:
        yield fleet
    finally:
        await fleet.store.close()


async def dump(fleet):
    """Return every value of every table, as a dump has them."""
    found = []
    async with fleet.store.read() as connection:
        for table in tables.metadata.sorted_tables:
            for row in await connection.execute(sa.select(table)):
                found += [value if isinstance(value, bytes) else str(value).encode() for value in row]
    return b"\n".join(found)


async def set_all(fleet):
    """Set all three as a person at the console does; returns the secret that signs what is posted."""
    console = Console(fleet, Commander(fleet.settings.fleet, fleet.home.signing_key("commands")), "test")
    signs = await console.set_webhook(HOOK)
    mail = MailSettings("smtp.example.org", 587, "starttls", "fleet@example.org", "fleet")
    await mailing.set_server(fleet, mail, PASSWORD, "test")
    await signon.set_provider(fleet, OidcSettings("https://id.example.org", "casemate"), CLIENT_SECRET, "test")
    return signs.encode()


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    """The provider is not what is attacked here."""

    async def described(*_):
        pass

    monkeypatch.setattr(Provider, "described", described)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def url(request, tmp_path):
    return databases.new(request.param, tmp_path)


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "control: in clear"])
def test_a_dump_of_the_database_holds_no_secret_of_the_settings(tmp_path, url, monkeypatch, sealed):
    if not sealed:
        monkeypatch.setattr(shared_settings.aead, "wrap", lambda _key, plain, _context: plain.reveal())

    async def work():
        async with fleet_in(tmp_path / "fleet", url) as fleet:
            return await set_all(fleet), await dump(fleet)

    signs, dumped = asyncio.run(work())
    raw = b"".join(each.read_bytes() for each in tmp_path.glob("fleet.db*"))  # what no query shows, too
    for secret in (signs, PASSWORD, CLIENT_SECRET, HOOK.encode()):
        written = any(form in dumped + raw for form in (secret, base64.b64encode(secret)))  # in JSON bytes are base64
        assert written is not sealed, secret


def test_who_writes_the_database_makes_no_setting_another_nor_one_of_their_own(tmp_path, url):
    async def work():
        table = desk.fleet_setting
        async with fleet_in(tmp_path / "fleet", url) as fleet:
            await set_all(fleet)
            async with fleet.store.read() as connection:
                rows = {row.name: bytes(row.sealed) for row in await connection.execute(sa.select(table))}
            other = rows["webhook"]
            changed = bytes([rows["mail"][0] ^ 1]) + rows["mail"][1:]
            async with fleet_in(tmp_path / "strangers") as stranger:
                await set_all(stranger)
                async with stranger.store.read() as connection:
                    query = sa.select(table.c.sealed).where(table.c.name == "mail")
                    foreign = bytes((await connection.execute(query)).scalar_one())
            for forged in (other, changed, foreign, rows["mail"][:-1], b"", b'{"settings":null,"secret":""}'):
                async with fleet.store.write() as connection:
                    await connection.execute(sa.update(table).where(table.c.name == "mail").values(sealed=forged))
                with pytest.raises(OperationError, match="do not open"):
                    await shared_settings.look_up(fleet, MailSettings)
            assert (await shared_settings.look_up(fleet, WebhookSettings)).settings.url == HOOK, (
                "control: as it was set"
            )
            await mailing.set_server(fleet, None, b"", "test")
            assert await shared_settings.look_up(fleet, MailSettings) is None, "setting it again is the way out"

    asyncio.run(work())


def test_the_process_that_talks_to_devices_has_no_key_to_the_settings(tmp_path):
    async def work():
        async with fleet_in(tmp_path / "fleet") as fleet:
            await set_all(fleet)
            (fleet.home.keys / "commands.key").unlink()  # what a process for devices alone is started without
            with pytest.raises(NotFoundError, match=r"commands\.key"):
                await shared_settings.look_up(fleet, MailSettings)

    asyncio.run(work())
