"""Accounts: an invitation becomes a person with a passkey; a passkey becomes a session.

There are no passwords. Who lost every passkey gets a new invitation, from an owner or on the server's console.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
import uuid
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import BusyError, NotAuthorisedError, NotFoundError, UsageError
from casemate.fleet.accounts import ceremonies, passkeys, sessions
from casemate.fleet.accounts.passkeys import Passkey, RelyingParty
from casemate.fleet.accounts.roles import Role
from casemate.fleet.accounts.sessions import Person
from casemate.fleet.store import desk, tables

INVITATION: Final = 24 * 3600.0
_NAME_LIMIT: Final = 64
_EMAIL: Final = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[a-z0-9-]+(\.[a-z0-9-]+)*")


@dataclasses.dataclass(frozen=True)
class Begun:
    """A ceremony: *handle* goes into a cookie, *options* to the browser's WebAuthn call."""

    handle: str
    options: dict[str, Any]


# --- invitations ------------------------------------------------------------------------------------------------------


async def invite(connection: AsyncConnection, name: str, role: Role, now: float, lifetime: float = INVITATION) -> str:
    """Make a one-time invitation for *name*; returns its token, which is stored nowhere.

    For somebody who is here already it is a way back: the new passkey is added and the old ones are dropped.

    Raises:
        UsageError: not a name.

    """
    name = parse_person(name)
    token = secrets.token_urlsafe(24)
    await connection.execute(sa.delete(tables.invitation).where(tables.invitation.c.expires < now))
    await connection.execute(
        sa.insert(tables.invitation).values(
            digest=_digest(token), role=role.value, user_name=name, created=now, expires=now + lifetime
        )
    )
    return token


async def invited(connection: AsyncConnection, token: str, now: float) -> tuple[str, str]:
    """Return name and role of an invitation that is still good.

    Raises:
        NotAuthorisedError: it is unknown, used or too old.

    """
    invitation = tables.invitation.c
    query = sa.select(invitation.user_name, invitation.role).where(
        invitation.digest == _digest(token), invitation.expires >= now, invitation.used.is_(None)
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotAuthorisedError(
            "this invitation was used, or is too old",
            hint="ask an owner for another, or make one on the server itself",
        )
    return row.user_name, row.role


# --- joining ----------------------------------------------------------------------------------------------------------


async def begin_joining(connection: AsyncConnection, party: RelyingParty, token: str, now: float) -> Begun:
    """Begin to make the passkey of somebody who was invited.

    Raises:
        NotAuthorisedError: as `invited`.

    """
    name, _ = await invited(connection, token, now)
    handle, challenge = await ceremonies.begin(connection, "join", _digest(token), now)
    options = passkeys.registration_options(party, challenge, str(uuid.uuid4()), name, [])
    return Begun(handle, options)


async def finish_joining(
    connection: AsyncConnection, party: RelyingParty, handle: str, answer: bytes, now: float
) -> tuple[str, str]:
    """Make the person of an invitation, with the passkey in *answer*; returns their name and the cookie of a session.

    Raises:
        NotAuthorisedError: the passkey was refused, or the invitation was used meanwhile.

    """
    ceremony = await ceremonies.take(connection, handle, "join", now)
    passkey = passkeys.verify_registration(party, ceremony.challenge, answer)
    invitation = tables.invitation.c
    use = (
        sa.update(tables.invitation)
        .where(invitation.digest == ceremony.subject, invitation.used.is_(None), invitation.expires >= now)
        .values(used=now)
        .returning(invitation.user_name, invitation.role)
    )
    row = (await connection.execute(use)).one_or_none()
    if row is None:
        raise NotAuthorisedError("this invitation was used, or is too old", hint="ask for another")
    user_id = await _person_for(connection, row.user_name, row.role, now)
    await _keep(connection, user_id, passkey, "first passkey", now)
    return row.user_name, await sessions.begin(connection, user_id, now)


async def _person_for(connection: AsyncConnection, name: str, role: str, now: float) -> str:
    """Return the id of the new person, or of the known one, whose passkeys and sessions end."""
    known = (await connection.execute(sa.select(tables.user.c.id).where(tables.user.c.name == name))).scalar()
    if known:
        await connection.execute(sa.delete(tables.passkey).where(tables.passkey.c.user_id == known))
        await connection.execute(sa.delete(desk.oidc_identity).where(desk.oidc_identity.c.user_id == known))
        await sessions.end_all(connection, known)
        await connection.execute(
            sa.update(tables.user).where(tables.user.c.id == known).values(state="active", role=role)
        )
        return str(known)
    user_id = str(uuid.uuid4())
    await connection.execute(
        sa.insert(tables.user).values(id=user_id, name=name, role=role, state="active", created=now)
    )
    return user_id


async def _keep(connection: AsyncConnection, user_id: str, passkey: Passkey, name: str, now: float) -> None:
    taken = sa.select(tables.passkey.c.user_id).where(tables.passkey.c.credential_id == passkey.credential_id)
    if (await connection.execute(taken)).scalar() is not None:
        raise BusyError("this passkey is somebody's already", hint="use another")
    await connection.execute(
        sa.insert(tables.passkey).values(
            credential_id=passkey.credential_id,
            user_id=user_id,
            public_key=passkey.public_key,
            sign_count=passkey.sign_count,
            name=name,
            created=now,
        )
    )


# --- another passkey --------------------------------------------------------------------------------------------------


async def begin_adding(connection: AsyncConnection, party: RelyingParty, person: Person, now: float) -> Begun:
    """Begin to give *person* another passkey."""
    handle, challenge = await ceremonies.begin(connection, "add", person.id, now)
    known = await credentials(connection, person.id)
    return Begun(handle, passkeys.registration_options(party, challenge, person.id, person.name, known))


async def finish_adding(
    connection: AsyncConnection,
    party: RelyingParty,
    person: Person,
    *,
    handle: str,
    answer: bytes,
    name: str,
    now: float,
) -> None:
    """Keep another passkey of *person*, called *name*.

    Raises:
        NotAuthorisedError: it was refused, or the ceremony is another person's.

    """
    ceremony = await ceremonies.take(connection, handle, "add", now)
    if ceremony.subject != person.id:
        raise NotAuthorisedError("this was begun by somebody else", hint="start again")
    passkey = passkeys.verify_registration(party, ceremony.challenge, answer)
    await _keep(connection, person.id, passkey, name.strip()[:_NAME_LIMIT] or "passkey", now)


async def credentials(connection: AsyncConnection, user_id: str) -> list[str]:
    """Return the ids of the passkeys of a person, base64url."""
    query = sa.select(tables.passkey.c.credential_id).where(tables.passkey.c.user_id == user_id)
    return list((await connection.execute(query)).scalars())


# --- signing in, and proving it again ---------------------------------------------------------------------------------


async def begin_login(connection: AsyncConnection, party: RelyingParty, now: float) -> Begun:
    """Begin to sign somebody in; who it is, the passkey says."""
    handle, challenge = await ceremonies.begin(connection, "login", "", now)
    return Begun(handle, passkeys.login_options(party, challenge))


async def finish_login(
    connection: AsyncConnection, party: RelyingParty, handle: str, answer: bytes, now: float
) -> tuple[str, str]:
    """Sign somebody in; returns their name and a session's cookie.

    Raises:
        NotAuthorisedError: the passkey is unknown or was refused, or its owner was disabled.

    """
    ceremony = await ceremonies.take(connection, handle, "login", now)
    user_id, name, _ = await _shown(connection, party, ceremony.challenge, answer, now)
    return name, await sessions.begin(connection, user_id, now)


async def begin_proof(connection: AsyncConnection, party: RelyingParty, person: Person, now: float) -> Begun:
    """Begin to ask *person* for a passkey again, before something dangerous."""
    handle, challenge = await ceremonies.begin(connection, "prove", person.id, now)
    return Begun(handle, passkeys.login_options(party, challenge, await credentials(connection, person.id)))


async def finish_proof(
    connection: AsyncConnection, party: RelyingParty, person: Person, *, handle: str, answer: bytes, now: float
) -> str:
    """Note that *person* showed a passkey again; returns which.

    Raises:
        NotAuthorisedError: it was refused, or is another person's.

    """
    ceremony = await ceremonies.take(connection, handle, "prove", now)
    user_id, _, credential = await _shown(connection, party, ceremony.challenge, answer, now)
    if user_id != person.id or ceremony.subject != person.id:
        raise NotAuthorisedError("this is another person's passkey", hint="use your own, or sign in as them")
    await sessions.proved(connection, person, now)
    return credential


async def _shown(
    connection: AsyncConnection, party: RelyingParty, challenge: bytes, answer: bytes, now: float
) -> tuple[str, str, str]:
    """Check the passkey in *answer*; returns the id and name of its owner, and which it is."""
    claimed = passkeys.credential_of(answer)
    passkey, user = tables.passkey.c, tables.user.c
    query = (
        sa.select(passkey.public_key, passkey.sign_count, user.id, user.name)
        .join(tables.user, user.id == passkey.user_id)
        .where(passkey.credential_id == claimed, user.state == "active")
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotAuthorisedError("this passkey is not known here", hint="use another, or ask an owner to invite you")
    counter = passkeys.verify_login(party, challenge, answer, Passkey(claimed, row.public_key, row.sign_count))
    await connection.execute(
        sa.update(tables.passkey).where(passkey.credential_id == claimed).values(sign_count=counter, used=now)
    )
    return row.id, row.name, claimed


# --- the people -------------------------------------------------------------------------------------------------------


async def disable(connection: AsyncConnection, name: str) -> None:
    """Let *name* in no more; their sessions and tokens end.

    Raises:
        NotFoundError: there is nobody of that name.
        BusyError: they are the last owner.

    """
    user = tables.user.c
    row = (await connection.execute(sa.select(user.id, user.role).where(user.name == name))).one_or_none()
    if row is None:
        raise NotFoundError(f"there is nobody called {name!r}")
    owners = sa.select(sa.func.count()).where(user.role == Role.OWNER, user.state == "active", user.id != row.id)
    if row.role == Role.OWNER and not (await connection.execute(owners)).scalar():
        raise BusyError("the last owner stays", hint="invite another owner first")
    await connection.execute(sa.update(tables.user).where(user.id == row.id).values(state="disabled"))
    await connection.execute(sa.delete(tables.passkey).where(tables.passkey.c.user_id == row.id))
    await connection.execute(sa.delete(tables.api_token).where(tables.api_token.c.user_id == row.id))
    await sessions.end_all(connection, row.id)


async def set_email(connection: AsyncConnection, name: str, address: str) -> str:
    """Note the e-mail address of *name* ("": none); returns it as it is stored.

    Approvals that wait for them are told there, and a sign-in provider that verified it may let them in as *name*.

    Raises:
        NotFoundError: there is nobody of that name.
        BusyError: it is somebody else's.

    """
    user, stored = tables.user.c, parse_email(address) if address else None
    taken = sa.select(user.name).where(user.email == stored, user.name != name)
    if stored and (await connection.execute(taken)).first() is not None:
        raise BusyError("this address is somebody else's already")
    done = await connection.execute(sa.update(tables.user).where(user.name == name).values(email=stored))
    if not done.rowcount:
        raise NotFoundError(f"there is nobody called {name!r}")
    return stored or ""


def parse_email(text: str) -> str:
    """Return an e-mail address as it is stored: lower case, and nothing that could become a second header.

    Raises:
        UsageError: it is none.

    """
    address = text.strip().lower()
    if len(address) > desk.EMAIL or not _EMAIL.fullmatch(address):
        raise UsageError(f"{text[:60]!r} is no e-mail address", hint="NAME@HOST")
    return address


def parse_person(name: str) -> str:
    """Return *name* as it is stored.

    Raises:
        UsageError: empty, too long, or not printable.

    """
    name = " ".join(name.split())
    if not 1 <= len(name) <= _NAME_LIMIT or not name.isprintable():
        raise UsageError(f"a person's name is 1 to {_NAME_LIMIT} printable characters")
    return name


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
