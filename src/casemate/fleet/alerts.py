"""What a person must hear of: rules over the records, one open alert for each thing that is wrong, told once.

A rule is a query for what is wrong now. The sweep opens what is new and closes what is over, each in one statement, so
a hundred thousand devices cost as much as ten. What needs a person to say that it is over (a failed integrity check)
stays open until one does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet.context import Fleet
from casemate.fleet.seen import BUCKET
from casemate.fleet.states import State
from casemate.fleet.store import tables

CERTIFICATE_SECONDS: Final = 86400.0
"""A device renews at half of seven days: with one day left it has failed to for days."""
_OFFLINE_SECONDS: Final = ((10_000, 300.0), (100_000, 1500.0))
_OFFLINE_SLOWEST: Final = 3600.0
_device, _seen, _alert = tables.device.c, tables.device_seen.c, tables.alert.c
_LIVE: Final = (State.ENROLLED, State.QUARANTINED)


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """A kind of alert: what it says, what is wrong now, and whether it ends by itself."""

    kind: str
    detail: str
    wrong: Callable[[float, int], sa.Select[Any]]
    """(now, number of devices) -> a query for device ids."""
    ends: bool = True


def offline_seconds(count: int) -> float:
    """Return the seconds without a word after which one of *count* devices is offline: they call less often if many."""
    return next((each for most, each in _OFFLINE_SECONDS if count <= most), _OFFLINE_SLOWEST)


def _offline(now: float, count: int) -> sa.Select[Any]:
    seconds = offline_seconds(count)
    late = sa.and_(_seen.last_seen < now - seconds, _device.created < now - seconds)
    joined = sa.join(tables.device, tables.device_seen, _device.id == _seen.device_id)
    return sa.select(_device.id).select_from(joined).where(_device.state.in_(_LIVE), late)


def _certificate(now: float, count: int) -> sa.Select[Any]:
    del count
    return sa.select(_device.id).where(
        _device.state.in_(_LIVE), _device.certificate_expires < now + CERTIFICATE_SECONDS
    )


def _quarantine(now: float, count: int) -> sa.Select[Any]:
    del now, count
    return sa.select(_device.id).where(_device.state == State.QUARANTINED)


def _attestation(now: float, count: int) -> sa.Select[Any]:
    """Devices that can prove what they run and have not done so in time, or were found wrong."""
    del count
    joined = sa.join(tables.device, tables.tpm_identity, _device.id == tables.tpm_identity.c.device_id)
    overdue = sa.and_(_device.assurance_expires < now, _device.created < now - _OFFLINE_SECONDS[0][1])
    return sa.select(_device.id).select_from(joined).where(_device.state == State.ENROLLED, overdue)


def _integrity(now: float, count: int) -> sa.Select[Any]:
    del count
    rollup = tables.health_rollup.c
    recent = sa.and_(rollup.bucket >= int(now) - 2 * BUCKET, rollup.integrity_failures > 0)
    return sa.select(rollup.device_id).where(recent)


def _return(now: float, count: int) -> sa.Select[Any]:
    """Devices that wait for a person: `returns`."""
    del now, count
    asks = tables.device_return
    joined = sa.join(tables.device, asks, _device.id == asks.c.device_id)
    return sa.select(_device.id).select_from(joined).where(_device.state.in_(_LIVE), asks.c.approved.is_(None))


RULES: Final = (
    Rule("offline", "it has not been heard of", _offline),
    Rule("certificate", "its certificate ends within a day and was not renewed", _certificate),
    Rule("return", "its certificate has ended and it asks to come back", _return),
    Rule("quarantine", "it is cut off", _quarantine),
    Rule("attestation", "it has not proven what it runs", _attestation),
    Rule("integrity", "it found something changed that must not change", _integrity, ends=False),
)


async def sweep(fleet: Fleet) -> int:
    """Open what is new and close what is over; returns how many were opened."""
    now, opened = fleet.clock.wall(), 0
    async with fleet.store.write() as connection:
        for rule in RULES:
            wrong = rule.wrong(now, fleet.device_count)
            if rule.ends:
                await _close_others(connection, rule.kind, wrong, now)
            count = await _open(connection, rule.kind, rule.detail, sa.and_(_device.id.in_(wrong)), now)
            fleet.metrics.alerts.labels(rule.kind).inc(count)
            opened += count
    return opened


async def raise_for(connection: AsyncConnection, fleet: Fleet, kind: str, device: str, detail: str) -> None:
    """Open an alert about one device, unless one of that kind is open; a person closes it."""
    count = await _open(connection, kind, detail, _device.id == device, fleet.clock.wall())
    fleet.metrics.alerts.labels(kind).inc(count)


async def open_ones(connection: AsyncConnection, limit: int) -> Sequence[sa.Row[Any]]:
    """Return the newest *limit* alerts that are open."""
    query = sa.select(tables.alert).where(_alert.closed.is_(None)).order_by(_alert.opened.desc()).limit(limit)
    return (await connection.execute(query)).all()


async def _open(connection: AsyncConnection, kind: str, detail: str, wanted: sa.ColumnElement[bool], now: float) -> int:
    already = sa.exists().where(_alert.closed.is_(None), _alert.kind == kind, _alert.device_id == _device.id)
    rows = sa.select(sa.literal(kind), _device.id, _device.asset, sa.literal(detail), sa.literal(now))
    columns = ["kind", "device_id", "asset", "detail", "opened"]
    done = await connection.execute(
        sa.insert(tables.alert).from_select(columns, rows.where(wanted, ~already), include_defaults=False)
    )
    return max(int(done.rowcount), 0)


async def _close_others(connection: AsyncConnection, kind: str, wrong: sa.Select[Any], now: float) -> None:
    over = sa.and_(_alert.kind == kind, _alert.closed.is_(None), _alert.device_id.not_in(wrong))
    await connection.execute(sa.update(tables.alert).where(over).values(closed=now))
