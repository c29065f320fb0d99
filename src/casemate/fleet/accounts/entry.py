"""Coming in by a sign-in provider: begun in one browser, finished once in the same one, written down."""

from __future__ import annotations

import dataclasses
import hmac
import secrets
import uuid
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import BusyError, NotAuthorisedError
from casemate.fleet.accounts import ceremonies, oidc, sessions
from casemate.fleet.accounts.oidc import Account, Entry, VerifiedLogin
from casemate.fleet.accounts.provider import Question
from casemate.fleet.accounts.sessions import Person
from casemate.fleet.shared_settings import OidcSettings
from casemate.fleet.store import desk, tables

CALLBACK: Final = "/sign-in/oidc/callback"
"""Where a provider sends browsers back to."""
_PURPOSE: Final = "oidc"


class _Kept(msgspec.Struct, frozen=True):
    """What a ceremony needs again at its end."""

    question: Question
    next: str
    begun: float


@dataclasses.dataclass(frozen=True)
class Returned:
    """A browser that came back. *proving*: the id of who must prove themselves again; "": somebody signs in."""

    question: Question
    next: str
    begun: float
    proving: str


@dataclasses.dataclass(frozen=True)
class Entered:
    """Somebody came in. *how*: known, linked (for the first time) or made (by the mapping of roles).

    *role*: what the mapping gave them; None: their own.
    """

    name: str
    cookie: str
    how: str
    role: str | None


async def begin(
    connection: AsyncConnection, redirect: str, after: str, now: float, *, proving: Person | None = None
) -> tuple[str, Question]:
    """Begin; returns the handle for the cookie and what the provider is asked."""
    question = Question(
        state=secrets.token_urlsafe(24),
        nonce=secrets.token_urlsafe(24),
        verifier=secrets.token_urlsafe(48),
        redirect=redirect,
        again=proving is not None,
    )
    kept = msgspec.json.encode(_Kept(question, after, now))
    handle, _ = await ceremonies.begin(connection, _PURPOSE, proving.id if proving else "", now, context=kept)
    return handle, question


async def come_back(connection: AsyncConnection, handle: str, now: float) -> Returned:
    """Take what was begun under *handle*, once; nothing of it counts before `require_state`.

    Raises:
        NotAuthorisedError: nothing was, it was finished already, or it took too long.

    """
    ceremony = await ceremonies.take(connection, handle, _PURPOSE, now)
    kept = msgspec.json.decode(ceremony.context, type=_Kept)
    return Returned(kept.question, kept.next, kept.begun, ceremony.subject)


def require_state(returned: Returned, state: str) -> None:
    """Refuse an answer to a question of another browser; after the transaction, so that it is used up all the same.

    Raises:
        NotAuthorisedError: *state* is not the one of this question.

    """
    if not hmac.compare_digest(state.encode("utf-8", "surrogatepass"), returned.question.state.encode()):
        raise NotAuthorisedError("this sign-in was begun elsewhere", hint="start again")


async def enter(connection: AsyncConnection, settings: OidcSettings, login: VerifiedLogin, now: float) -> Entered:
    """Let in who *login* is.

    Raises:
        NotAuthorisedError: nobody of ours: see `oidc.decide`.
        BusyError: the name of a new account is taken.

    """
    entry = oidc.decide(settings, login, await _linked(connection, login), await _of_email(connection, login))
    user_id, name = await _account(connection, entry, login, now)
    how = "known"
    if entry.link:
        await _link(connection, user_id, login, now, mapped=entry.makes)
        how = "made" if entry.makes else "linked"
    identity = desk.oidc_identity
    await connection.execute(sa.update(identity).where(*_same(login)).values(used=now))
    # a provider that does not say when they proved themselves has not shown that it was just now
    cookie = await sessions.begin(connection, user_id, now, proved=login.authenticated or 0.0)
    return Entered(name, cookie, how, entry.role)


async def prove(connection: AsyncConnection, person: Person, login: VerifiedLogin, begun: float, now: float) -> None:
    """Note that *person* proved themselves to their provider again.

    Raises:
        NotAuthorisedError: it is somebody else, or the provider did not ask them anew.

    """
    linked = await _linked(connection, login)
    if linked is None or linked.id != person.id or not linked.is_active:
        raise NotAuthorisedError("this is another person's sign-in", hint="use your own, or sign in as them")
    if not oidc.proves_again(login, begun):
        raise NotAuthorisedError(
            "your provider did not ask you again, or does not say so", hint="use a passkey: People, add a passkey"
        )
    await sessions.proved(connection, person, now)


async def is_linked(connection: AsyncConnection, user_id: str, issuer: str) -> bool:
    """Say whether somebody can prove themselves at *issuer*."""
    identity = desk.oidc_identity.c
    query = sa.select(identity.subject).where(identity.user_id == user_id, identity.issuer == issuer).limit(1)
    return (await connection.execute(query)).first() is not None


async def _account(connection: AsyncConnection, entry: Entry, login: VerifiedLogin, now: float) -> tuple[str, str]:
    """Return id and name of who enters, made or given the role of the mapping first."""
    user = tables.user.c
    if entry.account is not None:
        if entry.role is not None:
            await connection.execute(sa.update(tables.user).where(user.id == entry.account.id).values(role=entry.role))
        return entry.account.id, entry.account.name
    if (await connection.execute(sa.select(user.id).where(user.name == login.email))).first() is not None:
        raise BusyError("somebody here has your address as their name", hint="ask an owner")
    made = str(uuid.uuid4())
    values = {"id": made, "name": login.email, "role": entry.role, "state": "active", "email": login.email}
    await connection.execute(sa.insert(tables.user).values(**values, created=now))
    return made, login.email


async def _link(connection: AsyncConnection, user_id: str, login: VerifiedLogin, now: float, *, mapped: bool) -> None:
    """Remember whom the provider calls *login*: from here on the address does not matter.

    Raises:
        NotAuthorisedError: the account is another of the provider's people already.

    """
    if await is_linked(connection, user_id, login.issuer):
        raise NotAuthorisedError("this account belongs to somebody else at your provider", hint="ask an owner")
    row = {"issuer": login.issuer, "subject": login.subject, "user_id": user_id, "mapped": mapped}
    await connection.execute(sa.insert(desk.oidc_identity).values(**row, created=now, used=now))


async def _linked(connection: AsyncConnection, login: VerifiedLogin) -> Account | None:
    user, identity = tables.user.c, desk.oidc_identity.c
    query = (
        sa.select(user.id, user.name, user.state, identity.mapped)
        .join_from(desk.oidc_identity, tables.user, user.id == identity.user_id)
        .where(*_same(login))
    )
    row = (await connection.execute(query)).one_or_none()
    return Account(row.id, row.name, row.state == "active", bool(row.mapped)) if row else None


async def _of_email(connection: AsyncConnection, login: VerifiedLogin) -> Account | None:
    if not login.email:
        return None
    user = tables.user.c
    row = (
        await connection.execute(sa.select(user.id, user.name, user.state).where(user.email == login.email))
    ).one_or_none()
    return Account(row.id, row.name, row.state == "active") if row else None


def _same(login: VerifiedLogin) -> tuple[sa.ColumnElement[bool], ...]:
    identity = desk.oidc_identity.c
    return identity.issuer == login.issuer, identity.subject == login.subject
