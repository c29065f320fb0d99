"""`casemate fleet serve`: from an empty directory to three listeners that were proven to refuse strangers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import sqlalchemy as sa

from casemate.clock import Clock
from casemate.crypto import x509
from casemate.errors import ConfigError, OperationError, UntrustedDataError, UsageError
from casemate.fleet import earlier, listeners, pki, selftest, upkeep
from casemate.fleet.accounts import people
from casemate.fleet.accounts.passkeys import RelyingParty
from casemate.fleet.accounts.roles import Role
from casemate.fleet.app import devices_app, enrolment_app, people_app
from casemate.fleet.audit import Act, AuditLog
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet, Served
from casemate.fleet.home import FleetHome, Settings
from casemate.fleet.peer import ProxyPeers, TlsPeers
from casemate.fleet.shared_clock import FleetClock
from casemate.fleet.store import Store, partitions, schema, tables
from casemate.fleet.store.database import sqlite_url
from casemate.formats import tlog

LISTENERS: Final = ("people", "devices", "enrol")
PEOPLE_PORT: Final = 8443
"""Where people are served unless told otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What the command line gave. An address is HOST:PORT or unix:PATH; empty: this listener runs elsewhere."""

    people: str = "127.0.0.1:0"
    devices: str = "127.0.0.1:0"
    enrol: str = "127.0.0.1:0"
    database: str | None = None
    bus: str | None = None
    names: tuple[str, ...] = ()
    devices_url: str | None = None
    enrol_url: str | None = None
    people_url: str | None = None
    evidence_days: int | None = None
    grant_days: int | None = None
    tls: tuple[Path, Path] | None = None
    """Certificate chain and key for people's browsers (PEM)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """Where a server listens."""

    people: str
    devices: str
    enrol: str
    ca: str
    first: bool
    """The fleet was made just now."""
    admin_link: str = ""
    """The one-time way in for the first owner; on the first start only."""


async def prepare(home: FleetHome, clock: Clock, options: Options) -> bool:
    """Make the fleet if there is none and migrate its database; returns whether it is new.

    Raises:
        UsageError: the directory holds something else.
        OperationError: the database cannot be reached or migrated.

    """
    new = not home.exists
    if new:
        home.create()
        fleet = uuid.uuid4().hex
        pki.create(home, fleet, clock)
        database = options.database or sqlite_url(home.path / "fleet.db")
        settings = _changed(Settings(fleet=fleet, database=database), options)
        left = None
    else:
        written, left = earlier.read(home)
        settings = _changed(written, options)
    store = Store(settings.database)
    try:
        await schema.upgrade(store)
        shared = FleetClock(clock, store)
        await shared.settle()
        await partitions.keep(store, shared.wall())
        await _check_keys(home, settings, store)
        if left:
            await earlier.bring_over(home, settings, left, store, shared)
        await earlier.wrap_again(home, store)
    except BaseException:
        if new:
            home.clear()  # a first start that failed is no fleet: the next one begins anew
        raise
    finally:
        await store.close()
    home.save_settings(settings)  # last: what it says is true now
    earlier.clear(home)
    return new


async def _check_keys(home: FleetHome, settings: Settings, store: Store) -> None:
    """Refuse a database that another fleet has written: its devices would be met with keys they do not know.

    Raises:
        OperationError: its audit log is not signed by this directory's key.

    """
    async with store.read() as connection:
        kept = (await connection.execute(sa.select(tables.audit_tree.c.checkpoint))).scalar()
    if kept is None:
        return
    try:
        tlog.open_checkpoint(bytes(kept), [AuditLog(settings.fleet, home.signing_key("audit")).verifier])
    except UntrustedDataError as error:
        raise OperationError(
            "this database belongs to another fleet",
            hint="a second server needs a copy of the first one's directory; a new fleet an empty database",
        ) from error


def _changed(settings: Settings, options: Options) -> Settings:
    """Return the settings with what the command line gave this time."""
    given = {
        "database": options.database,
        "bus": options.bus,
        "names": options.names or None,
        "devices_url": options.devices_url,
        "enrol_url": options.enrol_url,
        "people_url": options.people_url,
        "evidence_days": options.evidence_days,
        "grant_days": options.grant_days,
    }
    return msgspec.structs.replace(settings, **{key: value for key, value in given.items() if value is not None})


async def serve(
    home: FleetHome, clock: Clock, options: Options, ready: Callable[[Fleet, Ready], Awaitable[None]]
) -> None:
    """Serve until SIGTERM or SIGINT; *ready* is awaited once everything listens and strangers were refused.

    Raises:
        HostError: the self-test failed: nothing was served.

    """
    new = await prepare(home, clock, options)
    listeners.allow_many()
    fleet = Fleet.open(home, clock)
    await fleet.clock.settle()
    sockets = {name: listeners.bind(address) for name, address in _addresses(options).items() if address}
    if not sockets:
        raise UsageError("nothing to serve: every listener is switched off")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    addresses = {name: listeners.address_of(sock) for name, sock in sockets.items()}
    fleet.devices_url = fleet.settings.devices_url or addresses.get("devices", "")
    fleet.served = Served(**addresses, people_chain=options.tls[0] if options.tls else None)
    # the commands key is opened only where people are served: a process with the devices' listeners alone never has it
    commander = Commander(fleet.settings.fleet, home.signing_key("commands")) if "people" in sockets else None
    servers = {name: _listener(name, sock, fleet, commander, options) for name, sock in sockets.items()}
    running = [asyncio.create_task(server.serve(), name=name) for name, server in servers.items()]
    running.append(asyncio.create_task(upkeep.ears(fleet).run(stopping), name="hear"))
    if fleet.bus is not None:
        running.append(asyncio.create_task(fleet.bus.run(stopping), name="bus"))
    running += [
        asyncio.create_task(upkeep.run(fleet, task, stopping), name=task.name)
        for task in upkeep.tasks(fleet, commander)
    ]
    try:
        await _listening(servers)
        if "devices" in sockets:
            await _prove(sockets["devices"], fleet, clock.wall())
        shown = {name: addresses.get(name, "") for name in LISTENERS}
        link = await _first_owner(fleet, sockets["people"]) if new and "people" in sockets else ""
        await ready(fleet, Ready(**shown, ca=str(home.root), first=new, admin_link=link))
        await _until_stopped(stopping, running)
    finally:
        await _leave(fleet, servers, running, stopping)


async def _leave(
    fleet: Fleet, servers: dict[str, listeners.Listener], running: list[asyncio.Task[None]], stopping: asyncio.Event
) -> None:
    """Stop so that nothing is lost: no new connections, what was begun is finished, then what waits is written."""
    fleet.leaving = True
    stopping.set()
    for server in servers.values():
        server.should_exit = True
    fleet.hub.close()
    await asyncio.gather(*running, return_exceptions=True)
    await fleet.leader.resign()
    with contextlib.suppress(Exception):  # what could not be written comes again with the next check-ins
        await fleet.seen.flush()
    if fleet.bus is not None:
        await fleet.bus.close()
    await fleet.store.close()


def _addresses(options: Options) -> dict[str, str]:
    return {"people": options.people, "devices": options.devices, "enrol": options.enrol}


def _listener(
    name: str, sock: socket.socket, fleet: Fleet, commander: Commander | None, options: Options
) -> listeners.Listener:
    proxied = sock.family == socket.AF_UNIX
    app: Any
    if name == "enrol":
        app = enrolment_app(fleet)
    elif name == "devices":
        app = devices_app(fleet, ProxyPeers(fleet) if proxied else TlsPeers())
    else:
        assert commander is not None
        app = people_app(fleet, commander, relying_party(fleet.settings, port=_port(sock)))
    own = pki.listener_certificate(fleet.home, _names(sock, fleet.settings), fleet.clock)

    def tell(why: str) -> None:
        fleet.metrics.refusals.labels(name, why).inc()

    if proxied:  # the certificate is the proxy's to show
        return listeners.Listener(app, sock, None, tell)
    if name == "devices":
        authorities = [x509.to_pem(each) for each in fleet.authority.chain()]
        return listeners.Listener(app, sock, listeners.device_context(*own, authorities), tell)
    chosen = options.tls if name == "people" and options.tls else own
    return listeners.Listener(app, sock, listeners.server_context(*chosen), tell)


def relying_party(settings: Settings, *, port: int) -> RelyingParty:
    """Return whose passkeys people use: the host of the address they open, by default that of the listener at *port*.

    Of the server's names the first that is not an address: devices may well have only an address to go to.

    Raises:
        ConfigError: the address is not one that browsers make passkeys for.

    """
    name = next((each for each in settings.names if each.strip("[]0123456789.:") and ":" not in each), "localhost")
    origin = settings.people_url.rstrip("/") or f"https://{name}" + (f":{port}" if port else "")
    parts = urlsplit(origin)
    host = parts.hostname or ""
    if parts.scheme != "https" or parts.path or parts.query or parts.username or host.strip("[]0123456789.:") == "":
        raise ConfigError(
            f"{origin} cannot have passkeys", hint="--people-url https://HOST[:PORT], with a name and not an address"
        )
    return RelyingParty(host, origin)


def _port(sock: socket.socket) -> int:
    return 0 if sock.family == socket.AF_UNIX else int(sock.getsockname()[1])


async def _first_owner(fleet: Fleet, sock: socket.socket) -> str:
    """Return the link that makes the first owner."""
    now = fleet.clock.wall()
    async with fleet.store.write() as connection:
        token = await people.invite(connection, "admin", Role.OWNER, now)
        await fleet.audit.append(connection, Act("server", "person.invited", detail={"name": "admin"}), now)
    return f"{relying_party(fleet.settings, port=_port(sock)).origin}/join/{token}"


async def _prove(sock: socket.socket, fleet: Fleet, now: float) -> None:
    """Attack our own devices' listener before anybody else can.

    Raises:
        HostError: a stranger was believed.

    """
    if sock.family == socket.AF_UNIX:
        path = Path(sock.getsockname())
        await selftest.prove_that_a_socket_believes_no_stranger(path, fleet.authority, now)
    else:
        host, port = sock.getsockname()[:2]
        await selftest.prove_that_strangers_are_refused(_reachable(host), port, fleet.authority, now)


def _names(sock: socket.socket, settings: Settings) -> tuple[str, ...]:
    """Return the names a listener's certificate holds: what was configured, and where it can be reached from here."""
    del sock
    host = socket.gethostname()
    return tuple(dict.fromkeys((*settings.names, host, "localhost", "127.0.0.1", "::1")))


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is compared, not bound


async def _listening(servers: dict[str, listeners.Listener]) -> None:
    while not all(server.started for server in servers.values()):  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)


async def _until_stopped(stopping: asyncio.Event, running: list[asyncio.Task[None]]) -> None:
    """Wait for a signal, or for a part that ended although it must not."""
    waiter = asyncio.create_task(stopping.wait())
    done, _ = await asyncio.wait([waiter, *running], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    for task in done - {waiter}:
        task.result()
