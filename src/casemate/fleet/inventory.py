"""What devices have installed. A set is named by its digest and stored once, however many devices share it."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.fleet import packages
from casemate.fleet.changes import note_change
from casemate.fleet.context import Fleet
from casemate.fleet.store import tables
from casemate.formats.fleet_api import Inventory, canonical_inventory


async def link(fleet: Fleet, device: str, digest: str) -> bool:
    """Note that *device* has the set *digest*; returns False when nobody has sent that set yet."""
    known = sa.select(tables.package_set.c.digest).where(tables.package_set.c.digest == digest)
    async with fleet.store.read() as connection:
        if (await connection.execute(known)).one_or_none() is None:
            return False
    async with fleet.store.write() as connection:
        await _set(connection, device, digest, fleet.clock.wall())
    fleet.directory.forget(device)
    return True


async def store(fleet: Fleet, device: str, inventory: Inventory) -> str:
    """Keep *inventory* as what *device* has, and return its digest: ours, computed, never the device's word."""
    items, now = canonical_inventory(inventory), fleet.clock.wall()
    digest = hashlib.sha256(items).hexdigest()
    known = sa.select(tables.package_set.c.digest).where(tables.package_set.c.digest == digest)
    async with fleet.store.read() as connection:
        is_new = (await connection.execute(known)).one_or_none() is None
    if is_new:
        await packages.index(fleet.store, digest, inventory.items)
    async with fleet.store.write() as connection:
        if is_new:
            values = {"digest": digest, "items": items, "count": len(set(inventory.items)), "created": now}
            await connection.execute(_insert_new(fleet).values(values))
        await _set(connection, device, digest, now)
    fleet.directory.forget(device)
    return digest


async def of(connection: AsyncConnection, device: str) -> bytes | None:
    """Return the items of *device* as canonical JSON, None when it sent none."""
    held = tables.device_packages.c
    joined = sa.join(tables.device_packages, tables.package_set, held.digest == tables.package_set.c.digest)
    query = sa.select(tables.package_set.c["items"].label("content")).select_from(joined)
    row = (await connection.execute(query.where(held.device_id == device))).one_or_none()
    return bytes(row.content) if row else None


async def prune(connection: AsyncConnection) -> int:
    """Delete sets that no device has any more; returns how many."""
    used = sa.select(tables.device_packages.c.digest)
    done = await connection.execute(sa.delete(tables.package_set).where(tables.package_set.c.digest.not_in(used)))
    await packages.prune(connection)
    return int(done.rowcount)


async def _set(connection: AsyncConnection, device: str, digest: str, now: float) -> None:
    table = tables.device_packages
    done = await connection.execute(
        sa.update(table).where(table.c.device_id == device).values(digest=digest, changed=now)
    )
    if not done.rowcount:
        await connection.execute(sa.insert(table).values(device_id=device, digest=digest, changed=now))
    await note_change(connection, device, "inventory", now)


def _insert_new(fleet: Fleet) -> sa.Insert:
    """Return an insert that another device with the same set may have won."""
    insert = postgresql.insert if fleet.store.is_postgresql else sqlite.insert
    return insert(tables.package_set).on_conflict_do_nothing()
