"""E-mail with a real mail server over TLS on loopback: what is told, to whom, once, and never in clear."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.errors import ConflictError, NotFoundError, OperationError, UsageError
from casemate.fleet import mail, mailing, serve
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.mail import Letter
from casemate.fleet.shared_settings import MailSettings
from casemate.fleet.store import desk, tables
from support import databases, smtp


class Clock(SystemClock):
    ahead = 0.0

    def wall(self):
        return super().wall() + self.ahead


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def run(request, tmp_path):
    """Run a coroutine function on a fresh fleet whose clock the test moves."""

    def call(work):
        async def inside():
            home, clock = FleetHome(tmp_path / "fleet"), Clock()
            await serve.prepare(home, clock, serve.Options(database=databases.new(request.param, tmp_path)))
            fleet = Fleet.open(home, clock)
            try:
                return await work(fleet, clock)
            finally:
                await fleet.store.close()

        return asyncio.run(inside())

    return call


@contextlib.contextmanager
def mailbox(tmp_path, monkeypatch, **options):
    with smtp.running(tmp_path / "mail", **options) as box:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "mail" / "ca.pem"))
        yield box


async def use(fleet, box, tls="starttls"):
    user, secret = (smtp.USER, smtp.PASSWORD.encode()) if tls == "starttls" else ("", b"")
    await mailing.set_server(fleet, MailSettings("127.0.0.1", box.port, tls, "fleet@example.org", user), secret, "test")


async def alert(fleet, count=1, kind="offline"):
    rows = [
        {"kind": kind, "device_id": str(uuid.uuid4()), "asset": f"till-{n}", "detail": "gone", "opened": 1e9}
        for n in range(count)
    ]
    async with fleet.store.write() as connection:
        await connection.execute(sa.insert(tables.alert), rows)


def test_alerts_are_told_once_over_tls_to_everybody_who_asked(run, tmp_path, monkeypatch):
    async def work(fleet, clock):
        await alert(fleet)
        await use(fleet, box)
        await mailing.add(fleet, "Ops@Example.org", "test")
        assert await mail.gather(fleet) == 0, "what was wrong before anybody listened is in the list"
        await mailing.add(fleet, "night@example.org", "test")
        await alert(fleet, 120)
        assert await mail.gather(fleet) == 120
        assert await mail.gather(fleet) == 0
        assert await mail.deliver(fleet) == 2
        assert await mail.deliver(fleet) == 0
        assert await mailing.test(fleet) == ["night@example.org", "ops@example.org"]

    with mailbox(tmp_path, monkeypatch) as box:
        run(work)
    assert sorted(to for to, _ in box.letters[:2]) == [["night@example.org"], ["ops@example.org"]]
    letter = box.letters[0][1]
    assert letter["subject"] == "[casemate] offline till-0 and 119 more"
    text = letter.get_content()
    assert "till-49: gone" in text
    assert "till-50" not in text, "one letter, not a hundred and twenty"
    assert "and 70 more" in text
    assert all(box.encrypted)
    assert len(box.letters) == 4


def test_what_the_server_does_not_take_now_is_tried_again_and_what_it_never_takes_is_not(run, tmp_path, monkeypatch):
    async def work(fleet, clock):
        await use(fleet, box)
        await mailing.add(fleet, "ops@example.org", "test")
        await alert(fleet)
        await mail.gather(fleet)
        box.data_answer = "451 later"
        assert await mail.deliver(fleet) == 0
        box.data_answer = "250 taken"
        assert await mail.deliver(fleet) == 0, "not at once"
        clock.ahead += 4000
        assert await mail.deliver(fleet) == 1
        await alert(fleet)
        await mail.gather(fleet)
        box.recipient_answer = "550 no such person"
        assert await mail.deliver(fleet) == 0
        box.recipient_answer = "250 fine"
        clock.ahead += 86400
        assert await mail.deliver(fleet) == 0, "the address is wrong for ever"

    with mailbox(tmp_path, monkeypatch) as box:
        run(work)
    assert len(box.letters) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # aiosmtpd, when a client hangs up on it
def test_mail_that_would_go_in_clear_or_to_a_stranger_is_not_sent(run, tmp_path, monkeypatch):
    async def refused(fleet, box, tls):
        await use(fleet, box, tls)
        with pytest.raises(OperationError) as error:
            await mailing.test(fleet)
        assert smtp.PASSWORD not in error.value.message

    async def work(fleet, clock):
        await mailing.add(fleet, "ops@example.org", "test")
        with smtp.running(tmp_path / "clear", tls="none") as clear:
            await refused(fleet, clear, "starttls")  # it does not offer it
        with smtp.running(tmp_path / "stranger") as stranger:
            await refused(fleet, stranger, "starttls")  # an authority nobody listed
        with smtp.running(tmp_path / "mail", hosts=("192.0.2.1",)) as other:
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "mail" / "ca.pem"))
            await refused(fleet, other, "starttls")  # a listed authority, another server
        with smtp.running(tmp_path / "mail", tls="tls") as good:
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "mail" / "ca.pem"))
            await use(fleet, good, "tls")
            assert await mailing.test(fleet) == ["ops@example.org"], "control: the right one, over TLS"
        for box in (clear, stranger, other):
            assert box.letters == []

    run(work)


def test_who_may_agree_is_told_and_nobody_else(run, tmp_path, monkeypatch):
    people = (
        ("Ada", "owner", "active", "ada@example.org"),
        ("Sol", "security-officer", "active", "sol@example.org"),
        ("Vic", "viewer", "active", "vic@example.org"),
        ("Gus", "owner", "disabled", "gus@example.org"),
        ("Ida", "owner", "active", None),
    )

    async def work(fleet, clock):
        letter = mail.of_wipe("a1", "till-7", "Ada", "https://fleet.example/devices/x")
        async with fleet.store.write() as connection:
            for name, role, state, address in people:
                row = {"id": name, "name": name, "role": role, "state": state, "email": address, "created": 1.0}
                await connection.execute(sa.insert(tables.user).values(**row))
            assert await mail.tell_holders(connection, fleet, letter, Permission.WIPE) == 0, "no server is set"
        await use(fleet, box)
        for _ in range(2):
            async with fleet.store.write() as connection:
                await mail.tell_holders(connection, fleet, letter, Permission.WIPE)
        assert await mail.deliver(fleet) == 2

    with mailbox(tmp_path, monkeypatch) as box:
        run(work)
    assert sorted(to for to, _ in box.letters) == [["ada@example.org"], ["sol@example.org"]]
    assert "https://fleet.example/devices/x" in box.letters[0][1].get_content()


def test_no_name_makes_a_second_header(run, tmp_path, monkeypatch):
    async def work(fleet, clock):
        await use(fleet, box)
        letter = Letter("x", "till\r\nBcc: eve@example.org\r\n\r\nhello", ("text",))
        async with fleet.store.write() as connection:
            await mail.queue(connection, letter, ["ops@example.org"], 0.0)
        assert await mail.deliver(fleet) == 1

    with mailbox(tmp_path, monkeypatch) as box:
        run(work)
    ((to, letter),) = box.letters
    assert to == ["ops@example.org"]
    assert letter["bcc"] is None
    assert letter["subject"].startswith("[casemate] till  Bcc: eve")


def test_recipients_come_and_go_and_the_password_is_shown_nowhere(run, tmp_path, monkeypatch):
    async def work(fleet, clock):
        await mailing.add(fleet, "ops@example.org", "test")
        with pytest.raises(ConflictError):
            await mailing.add(fleet, "OPS@example.org", "test")
        with pytest.raises(NotFoundError):
            await mailing.remove(fleet, "night@example.org", "test")
        with pytest.raises(UsageError, match="nobody is told"):
            await mailing.test(fleet)
        await use(fleet, smtp.Mailbox(port=25))
        await alert(fleet)
        await mail.gather(fleet)
        shown = await mailing.describe(fleet)
        assert (shown["recipients"], shown["waiting"]) == (["ops@example.org"], 1)
        assert smtp.PASSWORD not in str(shown)
        await mailing.remove(fleet, "ops@example.org", "test")
        assert (await mailing.describe(fleet))["waiting"] == 0
        await mailing.set_server(fleet, None, b"", "test")
        assert (await mailing.describe(fleet))["server"] is None
        async with fleet.store.write() as connection:
            await mail.prune(connection, clock.wall() + mail.KEPT + 1)
            assert (await connection.execute(sa.select(desk.mail))).all() == []

    run(work)


@pytest.mark.parametrize(
    ("address", "tls", "sender"),
    [
        ("smtp.example.org:25", "none", "a@example.org"),
        ("smtp.example.org", "tls", "a@example.org"),
        ("smtp.example.org:587", "maybe", "a@example.org"),
        ("smtp.example.org:587", "tls", "nobody"),
        ("smtp.example.org:587", "tls", "a@b\nBcc: c@d"),
    ],
)
def test_a_server_is_reached_with_tls_or_not_at_all(address, tls, sender):
    with pytest.raises(UsageError):
        mailing.parse_server(address, tls, sender, "")
    assert mailing.parse_server("127.0.0.1:25", "none", "a@example.org", "").port == 25
