"""The server's own console: who can read the fleet's directory can do everything, and is written down as doing it.

It works on the database directly, so it is there when nobody can log in. A running server hears within a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from casemate.clock import Clock
from casemate.errors import OperationError, PolicyDeniedError
from casemate.fleet import backup as backups
from casemate.fleet import bulk, devices, enrolment, listing, pki, serve, shared_settings, states, webhook
from casemate.fleet.accounts import people
from casemate.fleet.accounts.entry import CALLBACK
from casemate.fleet.accounts.roles import Role
from casemate.fleet.api import tokens
from casemate.fleet.audit import Act
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.devices import Change
from casemate.fleet.enrolment import NewToken, Wanted
from casemate.fleet.home import FleetHome
from casemate.fleet.listing import Filter
from casemate.fleet.shared_settings import Held, WebhookSettings
from casemate.fleet.states import Event, State
from casemate.fleet.store import schema, tables
from casemate.fleet.usage import reports
from casemate.formats.envelope import Verb
from casemate.formats.tlog import Checkpoint


@dataclasses.dataclass(frozen=True, slots=True)
class Console:
    """The person at the console, and the fleet."""

    fleet: Fleet
    commander: Commander
    actor: str

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, home: FleetHome, clock: Clock) -> AsyncIterator[Console]:
        """Open the fleet in *home*.

        Raises:
            NotFoundError: there is none.
            OperationError: its database has another version's schema.

        """
        fleet = Fleet.open(home, clock)
        try:
            if await schema.revision(fleet.store) != schema.newest():
                raise OperationError(
                    "the database is not of this version", hint="start `casemate fleet serve` once: it migrates"
                )
            await fleet.clock.settle()
            commander = Commander(fleet.settings.fleet, home.signing_key("commands"))
            yield cls(fleet, commander, f"console:{getpass.getuser()}"[:128])
        finally:
            await fleet.store.close()

    async def create_token(self, wanted: Wanted) -> NewToken:
        """Make a one-time token."""
        return await enrolment.create_token(self.fleet, wanted, self.actor)

    async def list_tokens(self) -> list[dict[str, Any]]:
        """Return tokens without their secrets."""
        return await enrolment.list_tokens(self.fleet)

    async def revoke_token(self, name: str) -> None:
        """Make a token worthless."""
        await enrolment.revoke_token(self.fleet, name, self.actor)

    async def list_devices(self, chosen: Filter, limit: int) -> list[dict[str, Any]]:
        """Return up to *limit* devices."""
        found: list[dict[str, Any]] = []
        cursor, now = "", self.fleet.clock.wall()
        async with self.fleet.store.read() as connection:
            while len(found) < limit:
                size = min(limit - len(found), listing.MAX_PAGE)
                page = await listing.page(connection, chosen, now, cursor=cursor, size=size)
                found += page.devices
                cursor = page.cursor
                if not cursor:
                    break
        return found

    async def show_device(self, name: str) -> dict[str, Any]:
        """Return one device and its history."""
        async with self.fleet.store.read() as connection:
            return await listing.show(connection, name, self.fleet.clock.wall())

    async def change_device(self, name: str, event: Event, reason: str) -> tuple[State, str]:
        """Move a device through *event*; returns its new state and its id."""
        change = Change(event, self.actor, self.fleet.clock.wall(), reason)
        async with self.fleet.store.write() as connection:
            known = (await devices.find(connection, name)).id
            state = await devices.apply(connection, self.fleet.audit, known, change, self.commander)
        return state, known

    async def move_device(self, name: str, group: str) -> str:
        """Put a device into *group*; returns its id."""
        now = self.fleet.clock.wall()
        async with self.fleet.store.write() as connection:
            return await devices.move(connection, self.fleet.audit, name, group, actor=self.actor, now=now)

    async def show_bulk(self, wish: bulk.Wish, *, keep: bool) -> bulk.Shown:
        """Show for which devices *wish* is, and *keep* exactly these for `run_bulk`."""
        async with self.fleet.store.write() as connection:
            known = await bulk.show(connection, wish, self.actor, self.fleet.clock.wall())
            shown = await bulk.describe(connection, known)
            if not keep:
                await bulk.drop(connection, [known])
        return shown

    async def run_bulk(self, known: str, count: int) -> bulk.Shown:
        """Carry out an order that was shown, to its end; no server needs to run."""
        async with self.fleet.store.write() as connection:
            await bulk.confirm(connection, self.fleet, known, count, self.actor)
        await bulk.carry_out(self.fleet, self.commander, known)
        async with self.fleet.store.read() as connection:
            return await bulk.describe(connection, known)

    async def ask_device(self, name: str, verb: Verb) -> str:
        """Ask a device for a sign of life (`ping`) or for new evidence (`attest`); returns its id.

        Raises:
            NotFoundError: no such device.
            PolicyDeniedError: it is out, or not in yet.

        """
        now = self.fleet.clock.wall()
        async with self.fleet.store.write() as connection:
            row = await devices.find(connection, name, lock=True)
            if not states.may(State(row.state), states.Use.REPORT):
                raise PolicyDeniedError(f"a device that is {row.state} is asked for nothing")
            await self.commander.issue(connection, row.id, verb, actor=self.actor, now=now)
            await self.fleet.audit.append(connection, Act(self.actor, f"device.{verb}", row.id, row.asset), now)
        return str(row.id)

    async def invite(self, name: str, role: Role, url: str | None) -> str:
        """Make the one-time link for a person; *url* is the address people open."""
        origin = self._origin(url)
        now = self.fleet.clock.wall()
        async with self.fleet.store.write() as connection:
            token = await people.invite(connection, name, role, now)
            act = Act(self.actor, "person.invited", detail={"name": name, "role": role.value})
            await self.fleet.audit.append(connection, act, now)
        return f"{origin}/join/{token}"

    def callback_url(self) -> str:
        """Return where a sign-in provider sends people back to."""
        return self._origin(None) + CALLBACK

    def _origin(self, url: str | None) -> str:
        settings = msgspec.structs.replace(self.fleet.settings, people_url=url or self.fleet.settings.people_url)
        return serve.relying_party(settings, port=serve.PEOPLE_PORT).origin

    async def list_people(self) -> list[dict[str, Any]]:
        """Return everybody, with role and state."""
        user = tables.user.c
        async with self.fleet.store.read() as connection:
            rows = await connection.execute(sa.select(user.name, user.role, user.state, user.email).order_by(user.name))
            return [dict(row) for row in rows.mappings()]

    async def set_email(self, name: str, address: str) -> str:
        """Note the e-mail address of somebody ("": none)."""
        now = self.fleet.clock.wall()
        async with self.fleet.store.write() as connection:
            stored = await people.set_email(connection, name, address)
            act = Act(self.actor, "person.email", detail={"name": name, "email": stored})
            await self.fleet.audit.append(connection, act, now)
        return stored

    async def disable_person(self, name: str) -> None:
        """Let somebody in no more."""
        now = self.fleet.clock.wall()
        async with self.fleet.store.write() as connection:
            await people.disable(connection, name)
            await self.fleet.audit.append(connection, Act(self.actor, "person.disabled", detail={"name": name}), now)

    async def export_root(self, out: Path) -> None:
        """Move the root's key away; written down first, because it cannot be taken back."""
        async with self.fleet.store.write() as connection:
            act = Act(self.actor, "ca.export-root", detail={"file": out.name})
            await self.fleet.audit.append(connection, act, self.fleet.clock.wall())
        pki.export_root(self.fleet.home, out)

    async def rotate_intermediate(self, root_key: Path | None) -> Path:
        """Make the next intermediate and return its certificate's path."""
        key = pki.root_key(self.fleet.home, root_key)
        made = pki.rotate_intermediate(self.fleet.home, key, self.fleet.clock)
        async with self.fleet.store.write() as connection:
            act = Act(self.actor, "ca.rotate", detail={"intermediate": made.name})
            await self.fleet.audit.append(connection, act, self.fleet.clock.wall())
        return made

    async def audit_entries(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest entries of the audit log, oldest first."""
        async with self.fleet.store.read() as connection:
            return await self.fleet.audit.newest(connection, limit)

    async def audit_checkpoint(self) -> bytes:
        """Return the newest signed checkpoint of the audit log."""
        async with self.fleet.store.read() as connection:
            return await self.fleet.audit.checkpoint(connection)

    async def verify_audit(self, against: bytes | None) -> Checkpoint:
        """Prove the audit log, and that it extends *against*."""
        async with self.fleet.store.read() as connection:
            return await self.fleet.audit.verify(connection, against)

    async def create_api_token(self, name: str, role: str, seconds: float) -> tuple[str, str]:
        """Make a token for programs; returns its id and the token."""
        now = self.fleet.clock.wall()
        async with self.fleet.store.write() as connection:
            return await tokens.create(
                connection, self.fleet.audit, name=name, role=Role(role), seconds=seconds, actor=self.actor, now=now
            )

    async def list_api_tokens(self) -> list[dict[str, Any]]:
        """Return API tokens without their secrets."""
        async with self.fleet.store.read() as connection:
            return await tokens.listed(connection)

    async def revoke_api_token(self, known: str) -> None:
        """End an API token."""
        now = self.fleet.clock.wall()
        async with self.fleet.store.write() as connection:
            await tokens.revoke(connection, self.fleet.audit, known, actor=self.actor, now=now)

    async def list_alerts(self, everything: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - a flag of the command line
        """Return alerts, newest first; open ones unless *everything*."""
        alert = tables.alert
        query = sa.select(alert).order_by(alert.c.id.desc()).limit(1000)
        if not everything:
            query = query.where(alert.c.closed.is_(None))
        async with self.fleet.store.read() as connection:
            rows = (await connection.execute(query)).mappings()
            return [{key: value for key, value in row.items() if key != "tenant_id"} for row in rows]

    async def set_webhook(self, url: str) -> str:
        """Have alerts posted to *url* (empty: nowhere) from now on; returns the new secret."""
        secret = secrets.token_hex(32) if url else ""
        held = Held(WebhookSettings(webhook.check_url(url)), secret.encode()) if url else None
        async with self.fleet.store.write() as connection:
            if url:  # what was wrong before anybody listened is in the list; from here on it is told
                old = tables.alert.c.sent.is_(None)
                await connection.execute(sa.update(tables.alert).where(old).values(sent=0.0))
            act = Act(self.actor, "alert.webhook", detail={"host": webhook.host(url)})  # its path may hold a secret
            await shared_settings.put(connection, self.fleet, WebhookSettings, held, act)
        return secret

    async def show_usage(self, period: int | None, group: str | None) -> dict[str, Any]:
        """Return what is known of the usage of a period (None: the newest), of one group or of all."""
        async with self.fleet.store.read() as connection:
            return await reports.summary(connection, reports.Wanted(period, group), self.fleet.clock.wall())

    async def backup(self, out: Path) -> dict[str, Any]:
        """Write the whole fleet to *out*."""
        return await backups.write(self.fleet, out, self.actor)
