"""Something a browser was sent away to do, and its answer: begun once, finished once, in time.

A ceremony is a row that its own answer deletes. Its handle stands in a cookie, so the answer comes from the browser
that began; what it must contain (a challenge, a nonce) is in the row and was never in that browser's hands alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import NotAuthorisedError
from casemate.fleet.store import tables

TIME: Final = 300.0
"""Seconds a ceremony may take."""


@dataclasses.dataclass(frozen=True)
class Ceremony:
    """One that was begun. *subject*: whom it is about: an invitation, a user, or nobody known yet."""

    challenge: bytes
    subject: str
    context: bytes = b""


async def begin(
    connection: AsyncConnection, purpose: str, subject: str, now: float, *, context: bytes = b""
) -> tuple[str, bytes]:
    """Begin a ceremony for *purpose*; returns its handle (for a cookie) and its challenge."""
    handle, challenge = secrets.token_urlsafe(24), secrets.token_bytes(32)
    await connection.execute(sa.delete(tables.ceremony).where(tables.ceremony.c.expires < now))
    await connection.execute(
        sa.insert(tables.ceremony).values(
            digest=_digest(handle),
            purpose=purpose,
            subject=subject,
            challenge=challenge,
            context=context or None,
            expires=now + TIME,
        )
    )
    return handle, challenge


async def take(connection: AsyncConnection, handle: str, purpose: str, now: float) -> Ceremony:
    """Return the ceremony of *handle*, which ends with this: a second answer finds nothing.

    Raises:
        NotAuthorisedError: there is none, it is for something else, or it took too long.

    """
    ceremony = tables.ceremony.c
    gone = (
        sa.delete(tables.ceremony)
        .where(ceremony.digest == _digest(handle), ceremony.purpose == purpose, ceremony.expires >= now)
        .returning(ceremony.challenge, ceremony.subject, ceremony.context)
    )
    row = (await connection.execute(gone)).one_or_none()
    if row is None:
        raise NotAuthorisedError("this took too long, or was done already", hint="start again")
    return Ceremony(bytes(row.challenge), row.subject, bytes(row.context or b""))


def _digest(handle: str) -> str:
    return hashlib.sha256(handle.encode("utf-8", "surrogatepass")).hexdigest()
