"""Who is told by e-mail and by which server: set on the fleet's console."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from casemate.config import parse_address
from casemate.errors import ConflictError, NotFoundError, UsageError
from casemate.fleet import mail, shared_settings
from casemate.fleet.accounts.people import parse_email
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.shared_settings import Held, MailSettings
from casemate.fleet.store import desk, tables

KINDS: Final = ("starttls", "tls", "none")
_LOCAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_address = desk.mail_recipient.c.address


def parse_server(address: str, tls: str, sender: str, user: str) -> MailSettings:
    """Return how mail is sent.

    Raises:
        UsageError: it makes no sense, or would go over the network in clear.

    """
    try:
        host, port = parse_address(address)
    except ValueError as error:
        raise UsageError(f"{address!r} {error}", hint="HOST:PORT, 587 for starttls, 465 for tls") from error
    if tls not in KINDS:
        raise UsageError(f"{tls!r} is none of {', '.join(KINDS)}")
    if tls == "none" and host not in _LOCAL:
        raise UsageError("mail goes in clear to this machine only", hint="--tls starttls or --tls tls")
    return MailSettings(host, port, tls, parse_email(sender), user)


async def set_server(fleet: Fleet, settings: MailSettings | None, secret: bytes, actor: str) -> None:
    """Send mail by *settings* from now on; None: send none."""
    if settings and bool(settings.user) != bool(secret):
        raise UsageError("a user and a password belong together", hint="--user, --password-file")
    detail: dict[str, Any] = {"server": f"{settings.host}:{settings.port}", "tls": settings.tls} if settings else {}
    act = Act(actor, "alert.email.server" if settings else "alert.email.off", detail=detail)
    held = Held(settings, secret) if settings else None
    async with fleet.store.write() as connection:
        await shared_settings.put(connection, fleet, MailSettings, held, act)


async def add(fleet: Fleet, text: str, actor: str) -> str:
    """Tell *text* of alerts from now on; returns the address as it is stored.

    Raises:
        ConflictError: they are told already.

    """
    address, now = parse_email(text), fleet.clock.wall()
    async with fleet.store.write() as connection:
        if (await connection.execute(sa.select(_address).where(_address == address))).first():
            raise ConflictError(f"{address} is told already")
        if (await connection.execute(sa.select(_address).limit(1))).first() is None:
            # what was wrong before anybody listened is in the list; from here on it is told
            old = sa.update(tables.alert).where(tables.alert.c.mailed.is_(None))
            await connection.execute(old.values(mailed=0.0))
        row = {"address": address, "created": now, "created_by": actor}
        await connection.execute(sa.insert(desk.mail_recipient).values(**row))
        await fleet.audit.append(connection, Act(actor, "alert.email.add", detail={"address": address}), now)
    return address


async def remove(fleet: Fleet, text: str, actor: str) -> None:
    """Tell *text* no more; what waits for them is not sent.

    Raises:
        NotFoundError: they are not told.

    """
    address = text.strip().lower()
    async with fleet.store.write() as connection:
        gone = await connection.execute(sa.delete(desk.mail_recipient).where(_address == address))
        if not gone.rowcount:
            raise NotFoundError(f"{address} is not told of alerts")
        waits = sa.and_(desk.mail.c.recipient == address, desk.mail.c.sent.is_(None), desk.mail.c.about.like("alert:%"))
        await connection.execute(sa.delete(desk.mail).where(waits))
        act = Act(actor, "alert.email.remove", detail={"address": address})
        await fleet.audit.append(connection, act, fleet.clock.wall())


async def describe(fleet: Fleet) -> dict[str, Any]:
    """Return the server, who is told, and how many messages wait."""
    waits = sa.select(sa.func.count()).select_from(desk.mail).where(desk.mail.c.sent.is_(None))
    async with fleet.store.read() as connection:
        way = await shared_settings.find(connection, fleet.home, MailSettings)
        to = list((await connection.execute(sa.select(_address).order_by(_address))).scalars())
        waiting = (await connection.execute(waits)).scalar_one()
    server = msgspec.to_builtins(way.settings) if way else None
    return {"server": server, "recipients": to, "waiting": waiting}


async def test(fleet: Fleet) -> list[str]:
    """Send a message to everybody who is told, now; returns who they are.

    Raises:
        UsageError: no server is set, or nobody is told.
        OperationError: it cannot be sent.

    """
    way = await shared_settings.look_up(fleet, MailSettings)
    to: list[str] = (await describe(fleet))["recipients"]
    if way is None or not to:
        raise UsageError("nobody is told by e-mail", hint="`casemate fleet alert email server`, then `... add`")
    for address in to:
        letter = mail.message(fleet, way.settings, address, "a test", "Alerts of this fleet will come to this address.")
        await asyncio.to_thread(mail.send, way, letter)
    return to
