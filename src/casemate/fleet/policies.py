"""Reference policies in force. Their author's public key lies in the fleet's directory; the private one is elsewhere.

A policy is checked when it is added and again whenever it is read: what decides over keys is a signature, not a row of
a database. One policy per group, named after it ("default" for devices without one). A group without a policy has none:
its devices are not affirmed.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import NotFoundError, OperationError, UntrustedDataError, UsageError
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.store import tables
from casemate.formats import reference_policy
from casemate.formats.evidence import EventKind
from casemate.formats.reference_policy import VerifiedPolicy

AUTHOR_FILE: Final = "policy-author.pub"
DEFAULT: Final = "default"
_KEY_BYTES: Final = 32


async def trust_author(fleet: Fleet, public: bytes, actor: str) -> None:
    """Take policies signed by this Ed25519 key from now on; those of another author are not in force any more.

    Raises:
        UsageError: not a key.

    """
    if len(public) != _KEY_BYTES:
        raise UsageError("an Ed25519 public key has 32 bytes")
    async with fleet.store.write() as connection:
        act = Act(actor, "policy.author", detail={"public": public.hex()})
        await fleet.audit.append(connection, act, fleet.clock.wall())
    fleet.home.write(fleet.home.keys / AUTHOR_FILE, public.hex().encode("ascii") + b"\n", mode=0o644)


def author(fleet: Fleet) -> bytes | None:
    """Return the key that policies must be signed with; None: nobody was named, so no policy is in force.

    Raises:
        OperationError: the file is damaged.

    """
    try:
        text = fleet.home.read(fleet.home.keys / AUTHOR_FILE).decode("ascii").strip()
        public = bytes.fromhex(text)
    except NotFoundError:
        return None
    except ValueError as error:
        raise OperationError("the policy author's key is damaged", hint="`casemate fleet policy trust`") from error
    if len(public) != _KEY_BYTES:
        raise OperationError("the policy author's key is damaged", hint="`casemate fleet policy trust`")
    return public


async def add(fleet: Fleet, raw: bytes, actor: str) -> VerifiedPolicy:
    """Put a signed policy in force. One that is refused is an entry of the audit log, too: somebody tried.

    Raises:
        UsageError: nobody was named who may sign.
        UntrustedDataError: it is not signed by the author, leaves a check out, or is not newer than the last.

    """
    try:
        return await _put_in_force(fleet, raw, actor)
    except UntrustedDataError as error:
        detail = {"check": error.check, "sha256": hashlib.sha256(raw).hexdigest()}
        async with fleet.store.write() as connection:
            await fleet.audit.append(connection, Act(actor, "policy.refuse", detail=detail), fleet.clock.wall())
        raise


async def _put_in_force(fleet: Fleet, raw: bytes, actor: str) -> VerifiedPolicy:
    public = author(fleet)
    if public is None:
        raise UsageError("no policy author is trusted yet", hint="`casemate fleet policy trust KEY`")
    now, policy = fleet.clock.wall(), tables.attest_policy
    async with fleet.store.write() as connection:
        found = reference_policy.verify(raw, public=public)
        newest = sa.select(sa.func.max(policy.c.version)).where(policy.c.name == found.policy.name)
        above = (await connection.execute(newest)).scalar() or 0
        found = reference_policy.verify(raw, public=public, above=above)
        row = {"name": found.policy.name, "version": found.policy.version, "document": raw}
        await connection.execute(sa.insert(policy).values(**row, created=now, created_by=actor))
        detail = {"policy": found.policy.name, "version": found.policy.version, "digest": found.digest}
        await fleet.audit.append(connection, Act(actor, "policy.add", detail=detail), now)
    return found


async def in_force(fleet: Fleet, connection: AsyncConnection, group: str) -> VerifiedPolicy | None:
    """Return the newest policy of *group*; None when there is none.

    Raises:
        UntrustedDataError: the row is not what its author signed: nothing is affirmed then.

    """
    public = author(fleet)
    if public is None:
        return None
    policy = tables.attest_policy.c
    query = sa.select(policy.document).where(policy.name == (group or DEFAULT)).order_by(policy.version.desc()).limit(1)
    row = (await connection.execute(query)).one_or_none()
    return _verified(bytes(row.document), public) if row else None


async def without_model(fleet: Fleet, model: str) -> list[str]:
    """Return the names of the policies in force that list no file for *model*: a device that serves it is warned of.

    Raises:
        UntrustedDataError: a policy is not what its author signed.

    """
    names = sa.select(tables.attest_policy.c.name).distinct().order_by(tables.attest_policy.c.name)
    async with fleet.store.read() as connection:
        found = [
            (name, await in_force(fleet, connection, name)) for name in (await connection.execute(names)).scalars()
        ]
    return [name for name, policy in found if policy and (EventKind.MODEL, model) not in policy.named]


async def list_all(fleet: Fleet) -> list[dict[str, Any]]:
    """Return every policy that was ever put in force, newest first."""
    policy = tables.attest_policy.c
    async with fleet.store.read() as connection:
        query = sa.select(policy.name, policy.version, policy.created, policy.created_by).order_by(policy.id.desc())
        return [dict(row) for row in (await connection.execute(query)).mappings()]


@functools.lru_cache(maxsize=64)
def _verified(document: bytes, public: bytes) -> VerifiedPolicy:
    """Check a signature once for the same bytes and key: a fleet asks for the same few policies all the time."""
    return reference_policy.verify(document, public=public)
