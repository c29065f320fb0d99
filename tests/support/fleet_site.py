"""The people's listener of a real fleet, in a thread, with devices in its database; and a browser with a passkey."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import tempfile
import threading
import time
from pathlib import Path

import sqlalchemy as sa
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.virtual_authenticator import VirtualAuthenticatorOptions

from casemate.clock import SystemClock
from casemate.fleet import approvals, devices, listeners, pki, serve
from casemate.fleet.accounts import people
from casemate.fleet.accounts.passkeys import RelyingParty
from casemate.fleet.accounts.roles import Role
from casemate.fleet.app import people_app
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.states import State
from casemate.fleet.store import tables

BROWSER = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--ignore-certificate-errors",
    "--window-size=1280,860",
)
SETTLED = """
const done = arguments[0];
if (document.readyState === "complete") done(); else addEventListener("load", () => done());
"""


@dataclasses.dataclass
class Site:
    """A running console."""

    fleet: Fleet
    origin: str
    loop: asyncio.AbstractEventLoop
    commander: Commander

    def run(self, work):
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def write(self, act):
        """Run *act(connection)* in a transaction."""

        async def inside():
            async with self.fleet.store.write() as connection:
                return await act(connection)

        return self.run(inside())

    def read(self, query):
        """Return the rows of *query*."""

        async def inside():
            async with self.fleet.store.read() as connection:
                return (await connection.execute(query)).all()

        return self.run(inside())

    def invite(self, name="Ada", role=Role.OWNER):
        """Return the link of an invitation."""
        token = self.write(lambda connection: people.invite(connection, name, role, time.time()))
        return f"{self.origin}/join/{token}"

    def add_device(self, asset, state=State.ENROLLED, **more):
        """Make a device's record; returns its id."""

        async def act(connection):
            now = time.time()
            name = await devices.create(
                connection,
                self.fleet.audit,
                asset=asset,
                group=more.pop("group", "shops"),
                state=state,
                by="token",
                key="ab" * 32,
                now=now,
            )
            values = {"certificate_expires": now + 6 * 86400, **more}
            await connection.execute(sa.update(tables.device).where(tables.device.c.id == name).values(**values))
            await connection.execute(
                sa.insert(tables.device_seen).values(
                    device_id=name, last_seen=now - 40, state="serving", agent="0.1.0", generation="stable-7"
                )
            )
            return name

        return self.write(act)

    def settle(self, later):
        """Carry out approvals as if *later* seconds had passed."""
        return self.write(
            lambda connection: approvals.carry_out(connection, self.fleet.audit, self.commander, time.time() + later)
        )


@contextlib.contextmanager
def running(directory: Path):
    """Serve the console of a fresh fleet in *directory*."""
    started: list[Site] = []
    ready, stop = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    async def main():
        home = FleetHome(directory / "fleet")
        await serve.prepare(home, SystemClock(), serve.Options())
        fleet = Fleet.open(home, SystemClock())
        sock = listeners.bind("127.0.0.1:0")
        origin = f"https://localhost:{sock.getsockname()[1]}"
        commander = Commander(fleet.settings.fleet, home.signing_key("commands"))
        certificate, key = pki.listener_certificate(home, ("localhost",), SystemClock())
        app = people_app(fleet, commander, RelyingParty("localhost", origin))
        server = listeners.Listener(app, sock, listeners.server_context(certificate, key))
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        started.append(Site(fleet, origin, asyncio.get_running_loop(), commander))
        ready.set()
        while not stop.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.05)
        server.should_exit = server.force_exit = True
        await asyncio.wait([task], timeout=5)
        await fleet.store.close()

    def work():
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
            ready.set()
            raise

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(60)
    if failed:
        raise failed[0]
    try:
        yield started[0]
    finally:
        stop.set()
        thread.join(20)


@contextlib.contextmanager
def browser(*, passkey=True, arguments=()):
    """Start Chromium, with an authenticator that verifies its person."""
    profile = tempfile.mkdtemp(prefix="casemate-browser-")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (*BROWSER, f"--user-data-dir={profile}", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(20)
        if passkey:
            key = VirtualAuthenticatorOptions(
                protocol="ctap2", transport="internal", has_resident_key=True, has_user_verification=True,
                is_user_verified=True,
            )  # fmt: skip
            driver.add_virtual_authenticator(key)
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)
