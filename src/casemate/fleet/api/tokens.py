"""API tokens: random, scoped to a role, ending, stored as a hash. What needs a person's passkey no token can do."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import NotAuthorisedError, NotFoundError, PolicyDeniedError
from casemate.fleet.accounts.roles import NEEDS_PROOF, Permission, Role, require
from casemate.fleet.audit import Act, AuditLog
from casemate.fleet.store import tables

MARK: Final = "cfa1"
_LONGEST: Final = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a good token."""

    id: str
    name: str
    role: str

    @property
    def actor(self) -> str:
        """Return how the audit log names it."""
        return f"api:{self.name}"

    def require(self, permission: Permission, *, proof: bool = False) -> None:
        """Refuse what the token may not do; what needs *proof* no token can.

        Raises:
            NotAuthorisedError: its role has not that permission.
            PolicyDeniedError: nobody may without a passkey.

        """
        require(self.role, permission)
        if proof or permission in NEEDS_PROOF:
            raise PolicyDeniedError("this needs a person with a passkey", hint="do it in the console")


async def create(
    connection: AsyncConnection,
    audit: AuditLog,
    *,
    name: str,
    role: Role,
    seconds: float,
    actor: str,
    now: float,
    user_id: str | None = None,
) -> tuple[str, str]:
    """Make a token for *name* with the rights of *role*; returns its id and the token, which is stored nowhere.

    *user_id*: the person who made it, with whom it ends; None: it was made on the server's console.
    """
    known = secrets.token_hex(6)
    token = f"{MARK}.{known}.{secrets.token_urlsafe(32)}"
    await connection.execute(
        sa.insert(tables.api_token).values(
            id=known, digest=_digest(token), name=name, role=str(role), user_id=user_id, created=now, created_by=actor,
            expires=now + seconds,
        )
    )  # fmt: skip
    detail = {"token": known, "name": name, "role": str(role)}
    await audit.append(connection, Act(actor, "api-token.create", detail=detail), now)
    return known, token


async def revoke(connection: AsyncConnection, audit: AuditLog, known: str, *, actor: str, now: float) -> None:
    """End the token with the id *known*.

    Raises:
        NotFoundError: there is none, or it has ended.

    """
    token = tables.api_token
    done = await connection.execute(
        sa.update(token).where(token.c.id == known, token.c.revoked.is_(None)).values(revoked=now)
    )
    if not done.rowcount:
        raise NotFoundError(f"no API token {known!r}")
    await audit.append(connection, Act(actor, "api-token.revoke", detail={"token": known}), now)


async def listed(connection: AsyncConnection) -> list[dict[str, Any]]:
    """Return every token without its hash, newest first."""
    token = tables.api_token.c
    columns = (token.id, token.name, token.role, token.created, token.created_by, token.expires, token.revoked)
    rows = await connection.execute(sa.select(*columns).order_by(token.created.desc()).limit(1000))
    return [dict(row) for row in rows.mappings()]


async def find(connection: AsyncConnection, header: str, now: float) -> Caller:
    """Return who sent *header* (`Authorization: Bearer ...`).

    Raises:
        NotAuthorisedError: no token, or not a good one.

    """
    scheme, _, text = header.partition(" ")
    refusal = NotAuthorisedError("an API token is needed", hint="`casemate fleet api-token create` on the server")
    if scheme.lower() != "bearer" or not text or len(text) > _LONGEST:
        raise refusal
    token = tables.api_token.c
    query = sa.select(token.id, token.name, token.role).where(
        token.digest == _digest(text), token.expires > now, token.revoked.is_(None)
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise refusal
    return Caller(row.id, row.name, row.role)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
