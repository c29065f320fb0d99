"""Which devices have what: inventories as rows that can be searched.

A set is stored once as bytes (`inventory`) and once as rows here, each package once in the whole fleet. What a device
says it has is its claim; what it proved is in its attestation.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import NotFoundError, UsageError
from casemate.fleet.states import CARRIES_ASSET
from casemate.fleet.store import Store, tables
from casemate.formats.decoding import MALFORMED
from casemate.formats.fleet_api import Item

KINDS: Final[Mapping[str, str]] = {
    "engine": "Engines",
    "model": "Models",
    "policy": "Policies",
    "os": "Operating systems",
    "firmware": "Firmware",
    "hat": "HATs",
    "python": "Python packages",
    "dpkg": "Debian packages",
}
"""What can be installed, and what people call it; the few that matter most first."""
FEW: Final = ("engine", "model", "policy", "os", "firmware", "hat")
"""Kinds of which there are few: shown before anybody searches."""
PAGE: Final = 50
_CHUNK: Final = 200
_VERSIONS: Final = 1000
_MOST: Final = 1 << 53
_TOP: Final = "\U0010ffff"
_package, _member, _held = tables.package.c, tables.package_member.c, tables.device_packages.c
_device = tables.device.c


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for: a kind, beginnings of a name and a version, the beginning of a digest; all that are given."""

    kind: str = ""
    name: str = ""
    version: str = ""
    digest: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return self == Wanted()


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """Packages in the order of their names, each with how many devices have it; "" ends the pages."""

    packages: list[dict[str, Any]]
    cursor: str


async def index(store: Store, digest: str, items: Iterable[Item]) -> None:
    """Make the set *digest* searchable, in small transactions: a huge set does not hold up who writes meanwhile.

    Doing it again changes nothing, so a set is stored after it was indexed: one that was interrupted is sent again.
    """
    insert = postgresql.insert if store.is_postgresql else sqlite.insert
    keys = sorted({_key(item) for item in items})
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        rows = [dict(zip(("kind", "name", "version", "digest"), key, strict=True)) for key in chunk]
        here = sa.tuple_(_package.kind, _package.name, _package.version, _package.digest).in_(chunk)
        members = sa.select(_package.id, sa.literal(digest)).where(here)
        into = insert(tables.package_member).from_select(["package_id", "set_digest"], members, include_defaults=False)
        async with store.write() as connection:
            await connection.execute(insert(tables.package).on_conflict_do_nothing(), rows)
            await connection.execute(into.on_conflict_do_nothing())


async def prune(connection: AsyncConnection) -> None:
    """Forget the rows of sets that are stored no more, and packages that nobody has."""
    kept = sa.select(tables.package_set.c.digest)
    await connection.execute(sa.delete(tables.package_member).where(_member.set_digest.not_in(kept)))
    used = sa.select(_member.package_id)
    await connection.execute(sa.delete(tables.package).where(_package.id.not_in(used)))


async def find(connection: AsyncConnection, wanted: Wanted, *, cursor: str = "", size: int = PAGE) -> Found:
    """Return a page of the packages that fit.

    Raises:
        UsageError: not a kind, or not a cursor of ours.

    """
    if wanted.kind and wanted.kind not in KINDS:
        raise UsageError(f"nothing is of the kind {wanted.kind!r}", hint=f"one of: {', '.join(KINDS)}")
    if not (wanted.name + wanted.version + wanted.digest).isprintable():
        raise UsageError("no package has such a name, version or digest")
    count = sa.func.count(sa.distinct(_device.id)).label("devices")
    query = (
        sa.select(_package.id, _package.kind, _package.name, _package.version, _package.digest, count)
        .select_from(_joined())
        .where(*_conditions(wanted))
        .group_by(_package.id, _package.kind, _package.name, _package.version, _package.digest)
        .order_by(_package.name, _package.version, _package.id)
        .limit(size + 1)
    )
    if cursor:
        query = query.where(sa.tuple_(_package.name, _package.version, _package.id) > sa.tuple_(*_open(cursor)))
    rows = [dict(row) for row in (await connection.execute(query)).mappings()]
    last = rows[size - 1] if len(rows) > size else None
    return Found(rows[:size], _close(last) if last else "")


async def show(connection: AsyncConnection, name: int) -> dict[str, Any]:
    """Return one package with `versions`: every version of it that some device has, and how many have it.

    Raises:
        NotFoundError: no device ever had it.

    """
    row = (await connection.execute(sa.select(tables.package).where(_package.id == name))).mappings().one_or_none()
    if row is None:
        raise NotFoundError("no device has such a package")
    same = Wanted(kind=row["kind"], name=row["name"])
    found = await find(connection, same, size=_VERSIONS)
    versions = [one for one in found.packages if one["name"] == row["name"]]
    package = {key: row[key] for key in ("id", "kind", "name", "version", "digest")}
    return {**package, "versions": versions}


def holders(name: int) -> sa.Select[Any]:
    """Return a query for the ids of the devices that have the package *name*."""
    return sa.select(_held.device_id).join_from(
        tables.device_packages, tables.package_member, _held.digest == _member.set_digest
    ).where(_member.package_id == name)  # fmt: skip


def _joined() -> sa.Join:
    with_sets = sa.join(tables.package, tables.package_member, _package.id == _member.package_id)
    with_holders = with_sets.join(tables.device_packages, _held.digest == _member.set_digest)
    here = sa.and_(_device.id == _held.device_id, _device.state.in_(CARRIES_ASSET))
    return with_holders.join(tables.device, here)


def _conditions(wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if wanted.is_empty:
        found.append(_package.kind.in_(FEW))
    if wanted.kind:
        found.append(_package.kind == wanted.kind)
    for column, start in (
        (_package.name, wanted.name), (_package.version, wanted.version), (_package.digest, wanted.digest)
    ):  # fmt: skip
        if start:  # a range and not LIKE: no wildcard can come in, and an index serves it
            found += [column >= start, column < start + _TOP]
    return found


def _key(item: Item) -> tuple[str, str, str, str]:
    return (item.kind, item.name, item.version, item.digest or "")


def _close(row: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([row["name"], row["version"], row["id"]])).decode("ascii")


def _open(cursor: str) -> tuple[str, str, int]:
    try:
        name, version, number = msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=tuple[str, str, int])
    except (*MALFORMED, ValueError) as error:
        raise UsageError("not a cursor of this list", hint="take the one from the page before") from error
    if not (name + version).isprintable() or not 0 <= number < _MOST:
        raise UsageError("not a cursor of this list", hint="take the one from the page before")
    return name, version, number
