"""Settings of the whole fleet: set at one server and acted on by every other; what directories held is brought over."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import shutil
import threading

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.clock import SystemClock
from casemate.crypto.secret import Secret
from casemate.errors import NotFoundError, OperationError
from casemate.fleet import keybroker, mailing, serve, shared_settings, signon, webhook
from casemate.fleet.audit import Act
from casemate.fleet.commands import Commander
from casemate.fleet.console import Console
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.shared_settings import Held, MailSettings, OidcSettings, WebhookSettings, look_up
from casemate.fleet.store import desk, tables
from casemate.formats import keystore
from support import databases, provider

MAIL = MailSettings("smtp.example.org", 587, "starttls", "fleet@example.org", "fleet")


@contextlib.asynccontextmanager
async def served(*directories):
    """Start a server in each of *directories*, as `fleet serve` does; nothing listens."""
    opened = []
    for directory in directories:
        await serve.prepare(FleetHome(directory), SystemClock(), serve.Options())
        opened.append(Fleet.open(FleetHome(directory), SystemClock()))
    try:
        yield opened
    finally:
        for fleet in opened:
            await fleet.store.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def pair(request, tmp_path):
    """Two servers' directories, the second a copy of the first, and one database."""
    first, second = tmp_path / "a", tmp_path / "b"
    url = databases.new(request.param, tmp_path)
    asyncio.run(serve.prepare(FleetHome(first), SystemClock(), serve.Options(database=url)))
    shutil.copytree(first, second)
    return first, second


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.headers[webhook.HEADER], body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.got = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def console(fleet):
    return Console(fleet, Commander(fleet.settings.fleet, fleet.home.signing_key("commands")), "test")


async def actions(fleet):
    async with fleet.store.read() as connection:
        entries = await fleet.audit.newest(connection, 50)
    return [(each["action"], each["detail"]) for each in entries]


def test_what_is_set_at_one_server_the_other_does(pair, receiver):
    async def work():
        async with served(*pair) as (one, other):
            assert await webhook.deliver(other) == 0, "control: nobody is told yet"
            secret = await console(one).set_webhook(f"http://127.0.0.1:{receiver.server_port}/hook/T0-secret")
            async with one.store.write() as connection:
                row = {"kind": "offline", "asset": "till-7", "detail": "gone", "opened": 1.0}
                await connection.execute(sa.insert(tables.alert).values(**row))
            assert await webhook.deliver(other) == 1
            assert await webhook.deliver(one) == 0, "once"
            await mailing.set_server(other, MAIL, b"a password", "test")
            assert (await look_up(one, MailSettings)) == Held(MAIL, b"a password")
            assert "a password" not in json.dumps(await mailing.describe(one))
            await console(other).set_webhook("")
            await mailing.set_server(one, None, b"", "test")
            assert await look_up(one, WebhookSettings) is None
            assert await look_up(other, MailSettings) is None
            return secret, await actions(other)

    secret, log = asyncio.run(work())
    ((signature, body),) = receiver.got
    assert signature == webhook.sign(secret.encode(), body)
    said = [each for each in log if each[0].startswith("alert.")]
    assert [each for each, _ in said] == ["alert.webhook", "alert.email.server", "alert.webhook", "alert.email.off"]
    assert "secret" not in json.dumps(log), "nor is an address that holds one in the log"


def test_a_provider_removed_at_one_server_lets_nobody_in_at_the_other(pair):
    async def work():
        async with served(*pair) as (one, other):
            with provider.running() as idp:
                await signon.set_provider(one, OidcSettings(idp.issuer, "casemate"), b"between us", "test")
            shown = await signon.show(other)
            assert (shown["issuer"], shown["has_secret"]) == (idp.issuer, True)
            assert "between us" not in json.dumps(shown)
            await signon.remove_provider(other, "test")
            assert await signon.show(one) is None

    asyncio.run(work())


# --- what directories held before -------------------------------------------------------------------------------------

EARLIER = {
    "webhook": "https://hooks.example.org/T0/B1",
    "mail": msgspec.to_builtins(MAIL),
    "oidc": {
        "issuer": "https://id.example.org", "client_id": "casemate", "label": "Example", "role_claim": "groups",
        "roles": [["it", "operator"]], "has_secret": True,
    },
}  # fmt: skip
SECRETS = {"webhook.key": b"signs", "mail.key": b"a password", "oidc.key": b"between us"}


def age(directory, **held):
    """Make *directory* one that the version before wrote."""
    home = FleetHome(directory)
    now = json.loads(home.settings_file.read_bytes())
    nothing = {"webhook": "", "oidc": None, "mail": None}
    home.settings_file.write_text(json.dumps({**now, **nothing, "evidence_days": 12, **held, "schema": 1}))
    for name, secret in SECRETS.items():
        (home.keys / name).write_bytes(secret)
    return home


async def everything(fleet):
    return [await look_up(fleet, kind) for kind in shared_settings.NAMES]


def test_what_a_directory_held_is_brought_over_once_and_leaves_the_directory(pair):
    home = age(pair[0], **EARLIER)
    with pytest.raises(OperationError, match="earlier version") as refused:
        home.settings()
    assert "casemate fleet serve" in refused.value.hint

    async def work():
        for _ in range(2):  # a start, and the next one
            async with served(*pair) as (_, other):
                found = await everything(other)
                log = await actions(other)
        return found, log

    (posted, provider_, mail), log = asyncio.run(work())
    assert posted == Held(WebhookSettings(EARLIER["webhook"]), b"signs")
    assert mail == Held(MAIL, b"a password")
    roles = (("it", "operator"),)
    assert provider_ == Held(
        OidcSettings("https://id.example.org", "casemate", "Example", "groups", roles), b"between us"
    )
    assert [detail for action, detail in log if action == "settings.shared"] == [
        {"taken": ["mail", "oidc", "webhook"], "left": []}
    ]
    stored = home.settings_file.read_text()
    assert not {"hooks", "smtp", "oidc"} & set(stored.replace(".", " ").replace('"', " ").split())
    assert home.settings().evidence_days == 12, "the rest of it stays"
    assert not [name for name in SECRETS if (home.keys / name).exists()]


def test_an_old_directory_does_not_bring_back_what_was_switched_off_or_changed(pair):
    age(pair[0])
    age(pair[1], **EARLIER)

    async def work():
        async with served(pair[0]) as (one,):
            await console(one).set_webhook("https://new.example.org/")
            await mailing.set_server(one, MAIL, b"newer", "test")
            await mailing.set_server(one, None, b"", "test")
        async with served(pair[1]) as (other,):
            return await everything(other), await actions(other)

    (posted, provider_, mail), log = asyncio.run(work())
    assert posted.settings.url == "https://new.example.org/"
    assert mail is None
    assert provider_.settings.issuer == "https://id.example.org", "what nobody set since is not lost"
    assert ("settings.shared", {"taken": ["oidc"], "left": ["mail", "webhook"]}) in log


def test_a_start_that_was_cut_off_is_done_again(pair, monkeypatch):
    home = age(pair[0], **EARLIER)

    def cut(*_):
        raise OperationError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(FleetHome, "save_settings", cut)
        with pytest.raises(OperationError, match="power"):
            asyncio.run(serve.prepare(home, SystemClock(), serve.Options()))

    async def work():
        async with served(*pair) as (one, _):
            return await everything(one)

    assert all(asyncio.run(work()))
    assert not (home.keys / "mail.key").exists()


def test_a_server_without_the_key_brings_nothing_over_and_loses_nothing(pair):
    devices = age(pair[1], **EARLIER)
    (devices.keys / "commands.key").unlink()
    with pytest.raises(OperationError, match="commands key") as refused:
        asyncio.run(serve.prepare(devices, SystemClock(), serve.Options()))
    assert "first" in refused.value.hint
    assert (devices.keys / "mail.key").exists()
    age(pair[0], **EARLIER)

    async def work():
        async with served(*pair) as (one, _):
            return await everything(one)

    assert all(asyncio.run(work())), "the server for people did, and now the other starts"
    assert not (devices.keys / "mail.key").exists()


def test_a_secret_that_is_missing_is_said_and_not_left_out(pair):
    home = age(pair[0], **EARLIER)
    (home.keys / "oidc.key").unlink()
    with pytest.raises(NotFoundError, match=r"oidc\.key"):
        asyncio.run(serve.prepare(home, SystemClock(), serve.Options()))
    assert (home.keys / "mail.key").exists()


# --- keys of gated models ---------------------------------------------------------------------------------------------


GATE = keybroker.Gate("L2", 3600, None)


async def gated(fleet, model):
    """Return the name of the model's key, and of what this server opens as its key."""
    async with fleet.store.read() as connection:
        row = (await connection.execute(sa.select(tables.model_key).where(tables.model_key.c.model == model))).one()
    with keybroker.model_key(fleet.home, row) as key:
        return row.key_id, keystore.key_id(key)


def test_a_model_gated_at_one_server_has_its_key_at_the_other(pair):
    async def work():
        async with served(*pair) as (one, other):
            named, _ = await keybroker.gate_model(one, "saffron", GATE, "test")
            return named, await gated(one, "saffron"), await gated(other, "saffron")

    named, one, other = asyncio.run(work())
    assert one == other == (named, named)


def test_a_key_that_one_directory_alone_could_open_is_wrapped_for_all(pair, monkeypatch):
    """Each server made a key of its own when it first needed one, and neither opened what the other had wrapped."""

    async def before():
        async with served(*pair) as (one, other):
            for fleet, model, own in ((one, "saffron", b"a" * 32), (other, "thyme", b"b" * 32)):
                with monkeypatch.context() as patch:
                    patch.setattr(keybroker, "broker_key", lambda _home, own=own: Secret(own))
                    await keybroker.gate_model(fleet, model, GATE, "test")
                (fleet.home.keys / "broker.key").write_bytes(own)
            with pytest.raises(OperationError, match="does not open"):
                await gated(other, "saffron")

    async def after():
        async with served(*pair) as servers:
            return [await gated(fleet, model) for fleet in servers for model in ("saffron", "thyme")]

    asyncio.run(before())
    found = asyncio.run(after())
    assert all(name == opened for name, opened in found)
    assert found[:2] == found[2:]
    assert not [each for each in pair if (each / "keys" / "broker.key").exists()]


# --- any values -------------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=60)
KINDS = {
    WebhookSettings: st.builds(WebhookSettings, TEXT),
    OidcSettings: st.builds(
        OidcSettings, TEXT, TEXT, TEXT, TEXT, st.lists(st.tuples(TEXT, TEXT), max_size=4).map(tuple)
    ),
    MailSettings: st.builds(MailSettings, TEXT, st.integers(0, 65535), TEXT, TEXT, TEXT),
}
HELD = st.sampled_from(list(KINDS)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.none() | st.builds(Held, KINDS[kind], st.binary(max_size=200)))
)


@given(st.lists(HELD, min_size=1, max_size=6))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_set_last_is_what_every_server_reads(tmp_path, written):
    if not FleetHome(tmp_path / "fleet").exists:
        asyncio.run(serve.prepare(FleetHome(tmp_path / "fleet"), SystemClock(), serve.Options()))

    async def work():
        fleet = Fleet.open(FleetHome(tmp_path / "fleet"), SystemClock())
        try:
            async with fleet.store.write() as connection:
                await connection.execute(sa.delete(desk.fleet_setting))
                for kind, held in written:
                    await shared_settings.put(connection, fleet, kind, held, Act("test", "set"))
            return {kind: await look_up(fleet, kind) for kind in KINDS}
        finally:
            await fleet.store.close()

    assert asyncio.run(work()) == dict.fromkeys(KINDS) | dict(written)
