"""How long somebody who proved who they are is believed: a random cookie, of which only the digest is stored."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.store import tables

LIFETIME: Final = 8 * 3600.0
IDLE: Final = 30 * 60.0
PROOF: Final = 5 * 60.0
"""How long ago the passkey may have been shown for what `roles.NEEDS_PROOF` lists."""
_TOUCH: Final = 60.0
"""A session's last use is written at most this often: reading a page is not worth a write."""


@dataclasses.dataclass(frozen=True)
class Person:
    """Who asks. *proved*: when they last proved themselves (a passkey, or to their provider), since the epoch."""

    id: str
    name: str
    role: str
    session: str
    proved: float

    def has_proved(self, now: float) -> bool:
        """Say whether the passkey was shown recently enough for what is dangerous."""
        return now - self.proved <= PROOF


def digest(cookie: str) -> str:
    """Return what is stored of *cookie*."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()


async def begin(connection: AsyncConnection, user_id: str, now: float, *, proved: float | None = None) -> str:
    """Make a session for *user_id*, who proved themselves at *proved* (now: a passkey); returns its cookie.

    Old sessions are swept.
    """
    cookie = secrets.token_urlsafe(32)
    await connection.execute(sa.delete(tables.session).where(tables.session.c.expires < now))
    await connection.execute(
        sa.insert(tables.session).values(
            digest=digest(cookie),
            user_id=user_id,
            created=now,
            used=now,
            expires=now + LIFETIME,
            proved=now if proved is None else proved,
        )
    )
    return cookie


async def find(connection: AsyncConnection, cookie: str, now: float) -> Person | None:
    """Return who *cookie* belongs to; None when it is unknown, over, idle too long, or its owner was disabled."""
    session, user = tables.session.c, tables.user.c
    query = (
        sa.select(session.digest, session.used, session.expires, session.proved, user.id, user.name, user.role)
        .join(tables.user, user.id == session.user_id)
        .where(session.digest == digest(cookie), user.state == "active")
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None or now > row.expires or now - row.used > IDLE or now < row.used - _TOUCH:
        return None
    return Person(row.id, row.name, row.role, row.digest, row.proved)


async def touch(connection: AsyncConnection, person: Person, now: float) -> None:
    """Note that *person* is still here."""
    await connection.execute(
        sa.update(tables.session)
        .where(tables.session.c.digest == person.session, tables.session.c.used < now - _TOUCH)
        .values(used=now)
    )


async def proved(connection: AsyncConnection, person: Person, now: float) -> None:
    """Note that *person* showed a passkey again."""
    await connection.execute(
        sa.update(tables.session).where(tables.session.c.digest == person.session).values(proved=now, used=now)
    )


async def end(connection: AsyncConnection, person: Person) -> None:
    """Sign *person* out, here."""
    await connection.execute(sa.delete(tables.session).where(tables.session.c.digest == person.session))


async def end_all(connection: AsyncConnection, user_id: str) -> None:
    """Sign a person out everywhere."""
    await connection.execute(sa.delete(tables.session).where(tables.session.c.user_id == user_id))
