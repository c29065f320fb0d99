"""Reading devices: pages of a hundred thousand, and one with its history. A page is one query over an index."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import UsageError
from casemate.fleet import devices, packages, returns
from casemate.fleet.states import State
from casemate.fleet.store import tables
from casemate.formats.decoding import MALFORMED

PAGE: Final = 100
MAX_PAGE: Final = 1000
_TIMELINE: Final = 200

_device, _seen = tables.device.c, tables.device_seen.c
_COLUMNS: Final = (
    _device.id,
    _device.asset,
    _device.group_name.label("group"),
    _device.state,
    _device.assurance,
    _device.assurance_expires,
    _device.certificate_expires,
    _device.commands_waiting,
    _device.replaces,
    _device.created,
    _device.changed,
    _device.key_digest.label("key"),
    _seen.last_seen,
    _seen.state.label("reported"),
    _seen.agent,
    _seen.generation,
    _seen.clock_skew,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Which devices: exact state and group, an asset that begins with `asset`, who has the package of that id."""

    state: State | None = None
    group: str | None = None
    asset: str = ""
    package: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Some devices in the order of their assets, and where the next page begins ("" at the end)."""

    devices: list[dict[str, Any]]
    cursor: str


async def page(connection: AsyncConnection, chosen: Filter, now: float, *, cursor: str = "", size: int = PAGE) -> Page:
    """Return one page.

    Raises:
        UsageError: not a cursor of ours.

    """
    size = max(1, min(size, MAX_PAGE))
    query = sa.select(*_COLUMNS).join_from(
        tables.device, tables.device_seen, _device.id == _seen.device_id, isouter=True
    )
    for condition in conditions(chosen):
        query = query.where(condition)
    if cursor:
        query = query.where(sa.tuple_(_device.asset, _device.id) > sa.tuple_(*_open(cursor)))
    rows = (await connection.execute(query.order_by(_device.asset, _device.id).limit(size + 1))).mappings().all()
    shown = [describe(row, now) for row in rows[:size]]
    more = len(rows) > size
    return Page(shown, _close(rows[size - 1]["asset"], rows[size - 1]["id"]) if more else "")


async def show(connection: AsyncConnection, name: str, now: float) -> dict[str, Any]:
    """Return one device (id or asset tag) with its certificates, commands, and the history of its asset.

    Raises:
        NotFoundError: no such device.

    """
    row = await devices.find(connection, name)
    query = sa.select(*_COLUMNS).join_from(
        tables.device, tables.device_seen, _device.id == _seen.device_id, isouter=True
    )
    record = (await connection.execute(query.where(_device.id == row.id))).mappings().one()
    cert, command, event = tables.device_cert.c, tables.command.c, tables.audit_event.c
    certificates = await connection.execute(
        sa.select(cert.serial, cert.state, cert.not_after)
        .where(cert.device_id == row.id)
        .order_by(cert.not_after.desc())
    )
    commands = await connection.execute(
        sa.select(command.id, command.verb, command.state, command.created, command.created_by, command.finished)
        .where(command.device_id == row.id)
        .order_by(command.sequence.desc())
        .limit(_TIMELINE)
    )
    history = await connection.execute(
        sa.select(event.entry).where(event.asset == row.asset).order_by(event.seq.desc()).limit(_TIMELINE)
    )
    return {
        **describe(record, now),
        "certificates": [dict(each) for each in certificates.mappings()],
        "commands": [dict(each) for each in commands.mappings()],
        "history": [msgspec.json.decode(each.entry) for each in history],
        "returns": await returns.of(connection, row.id),
    }


def describe(row: sa.RowMapping, now: float) -> dict[str, Any]:
    """Return a device as people and scripts see it; an assurance whose proof is over is none."""
    shown = dict(row)
    expires = shown.pop("assurance_expires")
    if expires <= now:
        shown["assurance"] = "L0" if not expires else "expired"
    return shown


async def pending(connection: AsyncConnection, limit: int | None = None) -> Sequence[sa.Row[Any]]:
    """Return the devices that wait for a person's yes, the one that waits longest first."""
    query: sa.Select[Any] = sa.select(_device.id, _device.asset, _device.created, _device.key_digest)
    query = query.where(_device.state == State.PENDING).order_by(_device.created).limit(limit)
    rows: Sequence[sa.Row[Any]] = (await connection.execute(query)).all()
    return rows


def conditions(chosen: Filter) -> list[sa.ColumnElement[bool]]:
    """Return what a device must be to fit."""
    found: list[sa.ColumnElement[bool]] = []
    if chosen.state:
        found.append(_device.state == str(chosen.state))
    if chosen.group is not None:
        found.append(_device.group_name == chosen.group)
    if chosen.asset:
        # a range and not LIKE: no wildcard can come in, and the index serves it whatever the collation
        found += [_device.asset >= chosen.asset, _device.asset < chosen.asset + "\U0010ffff"]
    if chosen.package is not None:
        found.append(_device.id.in_(packages.holders(chosen.package)))
    return found


def _close(asset: str, name: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([asset, name])).decode("ascii").rstrip("=")


def _open(cursor: str) -> tuple[str, str]:
    try:
        asset, name = msgspec.json.decode(
            base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=tuple[str, str]
        )
    except (*MALFORMED, ValueError) as error:
        raise UsageError("not a cursor of this list", hint="take the one from the page before") from error
    if "\0" in asset + name:  # which PostgreSQL does not even compare
        raise UsageError("not a cursor of this list", hint="take the one from the page before")
    return asset, name
