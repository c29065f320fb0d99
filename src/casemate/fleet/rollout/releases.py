"""Releases as the fleet's server knows them: what channels offered, and whether devices can still be sent there.

A device fetches what its channel offers now and nothing else, so only that can be rolled out. A generation that was
taken back, stopped or replaced, or whose metadata has expired, is refused here before a device has to refuse it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import CasemateError, ConflictError, NotFoundError, PolicyDeniedError, UsageError
from casemate.fleet.audit import Act
from casemate.fleet.changes import note_change
from casemate.fleet.context import Fleet
from casemate.fleet.rollout import repository
from casemate.fleet.store import rollout_tables as tables
from casemate.formats.channel_set import Member
from casemate.formats.gate import Gate

REFRESH_SECONDS: Final = 900.0
_release, _source = tables.release.c, tables.release_source.c
_BELIEVED: Final[sa.Select[Any]] = sa.select(_source.place, _source.root, _source.metadata)
_WHY: Final = {
    "stopped": "its publisher stopped it",
    "superseded": "its channel offers something else now",
    "yanked": "a part of it was taken back",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Import:
    """A repository that is to be read, and who asks. *root*: its first root, needed once."""

    place: str
    actor: str
    root: bytes | None = None


async def bring_in(fleet: Fleet, wanted: Import) -> list[dict[str, Any]]:
    """Read a repository and remember what its channels offer; returns every release known.

    Raises:
        UsageError: no root was ever given.
        UntrustedDataError: the repository breaks a rule: nothing of it is kept.
        ConflictError: somebody else brought one in meanwhile: nothing of this one is kept.
        OperationError: it cannot be reached.

    """
    place = repository.place_of(wanted.place)
    async with fleet.store.read() as connection:
        known = (await connection.execute(_BELIEVED)).one_or_none()
    if wanted.root is not None:
        root = repository.require_root(wanted.root)
    elif known is not None:
        root = bytes(known.root)
    else:
        raise UsageError(
            "the repository's root is needed once: everything is verified from it",
            hint="--root public/metadata/1.root.json, from the release host itself",
        )
    before: dict[str, str] = {}
    if known is not None and root == bytes(known.root):
        before = msgspec.json.decode(known.metadata, type=dict[str, str])
    reading = await asyncio.to_thread(repository.read, place, root, before)
    now = fleet.clock.wall()
    async with fleet.store.write() as connection:
        await _require_unchanged(connection, known)
        row = {
            "place": place,
            "root": root,
            "metadata": msgspec.json.encode(reading.metadata),
            "expires": reading.expires,
            "checked": now,
            "fault": None,
        }
        if known is None:
            await connection.execute(sa.insert(tables.release_source).values(id=1, **row))
        else:
            await connection.execute(sa.update(tables.release_source).values(row))
        await _keep(connection, fleet, reading, wanted.actor, now)
        if not before:
            detail = {"place": place, "root": hashlib.sha256(root).hexdigest()}
            await fleet.audit.append(connection, Act(wanted.actor, "release.source", detail=detail), now)
    async with fleet.store.read() as connection:
        return await listed(connection, now)


async def refresh(fleet: Fleet) -> None:
    """Read the known repository again; what it answers that cannot be believed is noted and changes nothing."""
    async with fleet.store.read() as connection:
        known = (await connection.execute(_BELIEVED)).one_or_none()
    if known is None:
        return
    try:
        await bring_in(fleet, Import(known.place, "server"))
    except ConflictError:
        pass  # what somebody brought in meanwhile is newer
    except CasemateError as error:
        async with fleet.store.write() as connection:
            values = {"fault": error.message, "checked": fleet.clock.wall()}
            same = sa.and_(_source.place == known.place, _source.root == known.root)
            await connection.execute(sa.update(tables.release_source).where(same).values(values))


async def _require_unchanged(connection: AsyncConnection, known: sa.Row[Any] | None) -> None:
    """Refuse to write over what somebody else brought in since *known* was read: reading a repository takes a while.

    Without this a reading of the old repository puts back the root that a person has just replaced.

    Raises:
        ConflictError: it is not the same any more.

    """
    now = (await connection.execute(_BELIEVED.with_for_update())).one_or_none()
    if now != known:
        raise ConflictError("the release repository was read by somebody else meanwhile", hint="try again")


async def _keep(connection: AsyncConnection, fleet: Fleet, reading: repository.Reading, actor: str, now: float) -> None:
    """Write down what every channel offers; what it offered before is superseded, or gone with its parts."""
    offered: list[str] = []
    for seen in reading.channels:
        name = identity(seen.set.channel, seen.set.content_digest)
        offered.append(name)
        state = "yanked" if seen.missing else ("stopped" if seen.set.stop else "offered")
        values = {"state": state, "expires": reading.expires, "target_sha256": seen.target_sha256}
        values |= {"target_length": seen.target_length, "generation": seen.set.generation}
        old = (await connection.execute(sa.select(_release.state).where(_release.id == name))).scalar_one_or_none()
        if old == state:
            await connection.execute(sa.update(tables.release).where(_release.id == name).values(values))
            continue
        if old is None:
            made = {"channel": seen.set.channel, "content": seen.set.content_digest, "created": now}
            made |= {"members": msgspec.json.encode(seen.set.members), "created_by": actor, "changed": now}
            await connection.execute(sa.insert(tables.release).values(id=name, **made, **values))
        else:
            await connection.execute(sa.update(tables.release).where(_release.id == name).values(**values, changed=now))
        detail = {"release": name, "channel": seen.set.channel, "generation": seen.set.generation, "state": state}
        await fleet.audit.append(connection, Act(actor, "release.seen", detail=detail), now)
    gone = sa.and_(_release.id.not_in(offered), _release.state.in_(("offered", "stopped")))
    await connection.execute(sa.update(tables.release).where(gone).values(state="superseded", changed=now))
    await note_change(connection, "", "release", now)


def identity(channel: str, content: str) -> str:
    """Return the name of a release: the same set in the same channel is the same release."""
    return hashlib.sha256(f"{channel}\0{content}".encode()).hexdigest()[:16]


async def find(connection: AsyncConnection, name: str) -> sa.Row[Any]:
    """Return the release *name*: its id, or a channel, which stands for what that channel offers now.

    Raises:
        NotFoundError: there is none.

    """
    wanted = sa.or_(_release.id == name, sa.and_(_release.channel == name, _release.state != "superseded"))
    query = sa.select(tables.release).where(wanted).order_by(_release.changed.desc()).limit(1)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFoundError(f"no release {name!r}", hint="`casemate fleet release list` shows them")
    return row


def require_usable(row: Any, now: float) -> None:
    """Refuse a release that no device would take.

    Raises:
        PolicyDeniedError: it was stopped, replaced or taken back, or its metadata has expired.

    """
    why = fault(row, now)
    if why:
        raise PolicyDeniedError(
            f"generation {row.generation} of {row.channel} cannot be rolled out: {why}",
            hint="`casemate fleet release import` reads the repository again",
        )


def gates(row: Any) -> list[Gate]:
    """Return the gates of a release's models."""
    return [each.gate for each in _members(row) if each.gate]


def _members(row: Any) -> Sequence[Member]:
    found: Sequence[Member] = msgspec.json.decode(row.members, type=list[Member])
    return found


def fault(row: Any, now: float) -> str:
    """Say why a release cannot be rolled out; "" when it can."""
    if row.state != "offered":
        return _WHY.get(row.state, f"it is {row.state}")
    return "its signed metadata has expired" if row.expires <= now else ""


async def listed(connection: AsyncConnection, now: float) -> list[dict[str, Any]]:
    """Return every release known, newest first."""
    rows = await connection.execute(sa.select(tables.release).order_by(_release.created.desc(), _release.id).limit(500))
    return [described(row, now) for row in rows]


async def source(connection: AsyncConnection) -> dict[str, Any] | None:
    """Return where releases come from and how fresh that is; None when no repository is known."""
    columns = (_source.place, _source.expires, _source.checked, _source.fault)
    row = (await connection.execute(sa.select(*columns))).one_or_none()
    return row._asdict() if row else None


def described(row: Any, now: float) -> dict[str, Any]:
    """Return a release as people and scripts see it; `usable` says whether it can be rolled out, `fault` why not."""
    why = fault(row, now)
    return {
        "id": row.id,
        "channel": row.channel,
        "generation": row.generation,
        "content": row.content,
        "state": row.state,
        "usable": not why,
        "fault": why,
        "expires": row.expires,
        "created": row.created,
        "created_by": row.created_by,
        "members": [
            {"kind": each.kind, "name": each.name, "version": each.version, "security_version": each.security_version}
            | ({"gate": {"model": each.gate.model, "min_assurance": each.gate.min_assurance}} if each.gate else {})
            for each in _members(row)
        ],
    }
