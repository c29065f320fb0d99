"""Telling people by e-mail: what is wrong, and what waits for them. Queued in the act's own transaction, sent after it.

The way to the mail server is encrypted and its name checked, or nothing is sent; only on this machine may it be plain.
A message holds what an alert holds, and nothing of what a device was asked. What cannot be sent is tried again for a
day; what the server refuses for good is not. Setting it up is in `mailing`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import make_msgid
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import CasemateError, OperationError
from casemate.fleet import shared_settings
from casemate.fleet.accounts import roles
from casemate.fleet.accounts.roles import Permission
from casemate.fleet.context import Fleet
from casemate.fleet.shared_settings import Held, MailSettings, look_up
from casemate.fleet.store import desk, tables

LINES: Final = 50
"""Alerts that one message lists."""
KEPT: Final = 7 * 86400.0
_SECONDS: Final = 15.0
_BATCH: Final = 20
_FIRST_WAIT: Final = 30.0
_LONGEST_WAIT: Final = 3600.0
_CLAIM: Final = 120.0
_MOST: Final = 30
"""Attempts: about a day."""
_PERMANENT: Final = range(500, 600)
_SUBJECT: Final = 180
_mail, _alert = desk.mail.c, tables.alert.c


@dataclasses.dataclass(frozen=True, slots=True)
class Letter:
    """What is said. *about* names it, so that it is said once to each; *lines* are its text."""

    about: str
    subject: str
    lines: tuple[str, ...]


class _RefusedError(CasemateError):
    """The server will never take it."""


# --- what is said -----------------------------------------------------------------------------------------------------


async def gather(fleet: Fleet) -> int:
    """Queue one message about every alert that nobody was told of, to each recipient; returns how many alerts."""
    if await look_up(fleet, MailSettings) is None:
        return 0
    new = _alert.mailed.is_(None)
    async with fleet.store.write() as connection:
        to = (await connection.execute(sa.select(desk.mail_recipient.c.address))).scalars().all()
        rows = (await connection.execute(sa.select(tables.alert).where(new).order_by(_alert.id).limit(LINES))).all()
        if not to or not rows:
            return 0
        newest = (await connection.execute(sa.select(sa.func.max(_alert.id)).where(new))).scalar_one()
        count = (await connection.execute(sa.select(sa.func.count()).where(new, _alert.id <= newest))).scalar_one()
        letter = of_alerts(rows, count, fleet.settings.people_url)
        await queue(connection, letter, to, fleet.clock.wall())
        told = sa.update(tables.alert).where(new, _alert.id <= newest)
        await connection.execute(told.values(mailed=fleet.clock.wall()))
    return int(count)


def of_alerts(rows: Sequence[sa.Row[Any]], count: int, address: str) -> Letter:
    """Return the message about *rows*, the first of *count* alerts."""
    first = f"{rows[0].kind} {rows[0].asset}".strip()
    subject = first if count == 1 else f"{first} and {count - 1} more"
    lines = [f"{_moment(row.opened)}  {row.kind:12} {row.asset}: {row.detail}" for row in rows]
    if count > len(rows):
        lines.append(f"and {count - len(rows)} more")
    where = [f"{address.rstrip('/')}/alerts"] if address else []
    return Letter(f"alert:{rows[0].id}-{count}", subject, ("These need a person:", "", *lines, "", *where))


def of_wipe(approval: str, asset: str, asker: str, address: str) -> Letter:
    """Return what everybody hears who may agree to a wipe, and who asked: it may not have been them."""
    lines = (
        f"{asker} asked for a wipe of {asset}. When it is carried out, its keys are destroyed for ever.",
        "If that is right, somebody else agrees; if it is not, anybody may cancel it.",
        "",
        address,
    )
    return Letter(f"approval:{approval}", f"a wipe of {asset} waits for somebody to agree", lines)


async def tell_holders(connection: AsyncConnection, fleet: Fleet, letter: Letter, permission: Permission) -> int:
    """Queue *letter* to everybody who may *permission* and has an address; returns to how many."""
    if await shared_settings.find(connection, fleet.home, MailSettings) is None:
        return 0
    holders = [role.value for role in roles.Role if roles.allowed(role.value, permission)]
    user = tables.user.c
    query = sa.select(user.email).where(user.role.in_(holders), user.state == "active", user.email.is_not(None))
    to = (await connection.execute(query)).scalars().all()
    await queue(connection, letter, to, fleet.clock.wall())
    return len(to)


async def queue(connection: AsyncConnection, letter: Letter, to: Sequence[str | None], now: float) -> None:
    """Queue *letter* to each address, in the caller's transaction; who was told of it already is not told again."""
    told = sa.select(_mail.recipient).where(_mail.about == letter.about)
    already = set((await connection.execute(told)).scalars())
    subject, body = _one_line(letter.subject), "\n".join(letter.lines)
    common = {"about": letter.about, "subject": subject, "body": body, "created": now}
    rows = [{**common, "recipient": address} for address in dict.fromkeys(to) if address and address not in already]
    if rows:
        await connection.execute(sa.insert(desk.mail), rows)


# --- sending ----------------------------------------------------------------------------------------------------------


async def deliver(fleet: Fleet) -> int:
    """Send what is due; returns how many messages arrived."""
    way = await look_up(fleet, MailSettings)
    if way is None:
        return 0
    now, arrived = fleet.clock.wall(), 0
    due = sa.and_(_mail.sent.is_(None), _mail.next_attempt <= now, _mail.attempts < _MOST)
    async with fleet.store.read() as connection:
        rows = (await connection.execute(sa.select(desk.mail).where(due).order_by(_mail.id).limit(_BATCH))).all()
    for row in rows:
        wait = max(min(_FIRST_WAIT * 2**row.attempts, _LONGEST_WAIT), _CLAIM)
        mine = sa.update(desk.mail).where(_mail.id == row.id)
        async with fleet.store.write() as connection:  # claimed first: two servers do not send it twice
            taken = await connection.execute(
                mine.where(due).values(attempts=_mail.attempts + 1, next_attempt=now + wait)
            )
        if not taken.rowcount:
            continue
        outcome = await _try(fleet, way, row)
        fleet.metrics.deliveries.labels(f"mail-{outcome}").inc()
        values: dict[str, float] = {"sent": fleet.clock.wall()} if outcome == "done" else {}
        if outcome == "refused":
            values["attempts"] = _MOST
        if values:
            async with fleet.store.write() as connection:
                await connection.execute(mine.values(**values))
        arrived += outcome == "done"
    return arrived


async def prune(connection: AsyncConnection, now: float) -> None:
    """Forget messages that are old, whatever became of them."""
    await connection.execute(sa.delete(desk.mail).where(_mail.created < now - KEPT))


async def _try(fleet: Fleet, way: Held[MailSettings], row: sa.Row[Any]) -> str:
    letter = message(fleet, way.settings, row.recipient, row.subject, row.body)
    try:
        await asyncio.to_thread(send, way, letter)
    except _RefusedError:
        return "refused"
    except CasemateError:
        return "failed"
    return "done"


def message(fleet: Fleet, settings: MailSettings, to: str, subject: str, body: str) -> EmailMessage:
    """Return a message: no header of it holds more than one line."""
    made = EmailMessage()
    made["From"], made["To"] = settings.sender, to
    made["Subject"] = _one_line(f"[casemate] {subject}")
    made["Date"] = dt.datetime.fromtimestamp(fleet.clock.wall(), dt.UTC)
    made["Message-ID"] = make_msgid(domain=settings.sender.rpartition("@")[2])
    made["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday notice comes back
    made.set_content(body + "\n")
    return made


def send(way: Held[MailSettings], letter: EmailMessage) -> None:
    """Give *letter* to the mail server.

    Raises:
        OperationError: it is not there, cannot be believed, or does not take it now.

    """
    settings = way.settings
    context = ssl.create_default_context()
    try:
        with _connected(settings, context) as server:
            if settings.tls == "starttls":
                server.starttls(context=context)  # raises when the server does not offer it: nothing goes in clear
            if settings.user:
                server.login(settings.user, way.secret.decode())
            server.send_message(letter)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        kind = _RefusedError if all(code in _PERMANENT for code in codes) else OperationError
        raise kind(f"the mail server does not take this address: {codes}") from error
    except smtplib.SMTPResponseException as error:
        said = error.smtp_error.decode("utf-8", "replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        raise OperationError(f"the mail server refused: {error.smtp_code} {_one_line(said)[:120]}") from error
    except (smtplib.SMTPException, OSError, ValueError) as error:
        raise OperationError(
            f"the mail server cannot be reached or believed: {_one_line(str(error))[:120]}",
            hint="name, port and --tls of `casemate fleet alert email server`",
        ) from error


def _connected(settings: MailSettings, context: ssl.SSLContext) -> smtplib.SMTP:
    if settings.tls == "tls":
        return smtplib.SMTP_SSL(settings.host, settings.port, timeout=_SECONDS, context=context)
    return smtplib.SMTP(settings.host, settings.port, timeout=_SECONDS)


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)[:_SUBJECT]


def _moment(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
