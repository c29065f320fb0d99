"""The director: signs for each device what it shall take now, and hears what came of it.

Its key is online, in whichever process devices check in with. Whoever steals it, or the whole server, chooses among the
sets that release keys signed, for devices that refuse what is below their floors; there is nothing else to choose.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.crypto import authority
from casemate.crypto.signing import SigningKey
from casemate.errors import NotFoundError
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.identity import Known
from casemate.fleet.rollout import picks, terms, words
from casemate.fleet.rollout.picks import Action
from casemate.fleet.states import Use, may
from casemate.fleet.store import rollout_tables
from casemate.fleet.store import tables as base
from casemate.formats import director
from casemate.formats.director import Choice, Pick

LIFE: Final = 7 * 86_400
"""Seconds a pick holds; a device asks for it again a day before it ends."""
_GIVES: Final = ("running", "done")
_ASK_SECONDS: Final = 1.0
_BELIEVED: Final = 1 << 48
"""A device that says it follows a pick above this one lies about it, and only to its own harm."""
_one = rollout_tables.rollout_device.c


@functools.lru_cache(maxsize=4)
def signing_key(home: FleetHome) -> SigningKey | None:
    """Return the director's key; None: this fleet was made before there were directors, and directs nobody."""
    try:
        return home.signing_key("director")
    except NotFoundError:
        return None


async def deliver(fleet: Fleet, device: Known, held: int, now: float) -> bytes | None:
    """Return the signed pick of *device* when it follows another than *held*; from then on its silence counts."""
    if device.pick == held or not may(device.state, Use.REPORT):
        return None
    if device.pick is None and not await _directs(fleet):
        return None
    key = signing_key(fleet.home)
    if key is None:
        return None
    if device.pick is None or held > device.pick:
        if held > _BELIEVED:
            return None
        await _begin(fleet, device, held, now)
    async with fleet.store.read() as connection:
        row = (await connection.execute(_PICK, {"device": device.id})).one()
        pick = await _pick(connection, fleet, device, row, now)
    if pick.action == "take" and row.standing == "offered":  # asked again and again it costs no write
        async with fleet.store.write() as connection:
            if not await words.handed(connection, row.rollout_id, device.id, now):
                return None  # it was taken back in this moment: there is another pick already
    return director.sign_pick(pick, key)


async def _directs(fleet: Fleet) -> bool:
    """Say whether this fleet knows a release repository: looked up once a second until it does, whoever calls."""
    now = fleet.clock.monotonic()
    if not fleet.directs and now - fleet.directs_asked >= _ASK_SECONDS:
        fleet.directs_asked = now
        async with fleet.store.read() as connection:
            query = sa.select(rollout_tables.release_source.c.id)
            fleet.directs = (await connection.execute(query)).first() is not None
    return fleet.directs


async def _begin(fleet: Fleet, device: Known, held: int, now: float) -> None:
    """Give *device* its first pick, or one above *held*: a server that was restored knows less than its devices."""
    async with fleet.store.write() as connection:
        if device.pick is None:
            await picks.begin(connection, fleet.store, device.id, device.group, now)
        mine = sa.and_(_pick_row.c.device_id == device.id, _pick_row.c.sequence <= held)
        await connection.execute(sa.update(_pick_row).where(mine).values(sequence=held + 1, changed=now))
    fleet.directory.forget(device.id)


async def hear(fleet: Fleet, device: Known, raw: bytes, certificate: bytes, now: float) -> None:
    """Take a device's word.

    Raises:
        UntrustedDataError: it is not signed by the device, or not well-formed.

    """
    verified = director.verify_word(
        raw, public=authority.public_key(certificate), fleet=fleet.settings.fleet, device=device.id
    )
    async with fleet.store.write() as connection:
        await words.take(connection, fleet.store, verified, raw, now)


async def _pick(connection: AsyncConnection, fleet: Fleet, device: Known, row: Any, now: float) -> Pick:
    """Return what the director says, from the rollout as it stands: one that is paused gives nothing to anybody new."""
    action = Action(row.action)
    if (action is Action.TAKE and row.state not in _GIVES) or row.content is None:
        action = Action.KEEP
    choice, window, rate = None, None, 0
    if action is not Action.KEEP:
        choice = Choice(row.channel, row.generation, row.content, row.target_sha256, row.target_length)
    if action is Action.TAKE:
        given = terms.decode(bytes(row.terms))
        window = (given.window.start, given.window.until) if given.window else None
        rate = await _share(connection, row.rollout_id, device.group, given.bandwidth)
    return Pick(
        schema=1,
        fleet=fleet.settings.fleet,
        device=device.id,
        sequence=row.sequence,
        action=action.value,
        issued=int(now),
        expires=int(now) + LIFE,
        choice=choice,
        window=window,
        rate=rate,
    )


async def _share(connection: AsyncConnection, rollout: str, group: str, bandwidth: int) -> int:
    """Return one device's part of what its site may fetch: all that take it there now share the line."""
    if not bandwidth:
        return 0
    joined = sa.join(rollout_tables.rollout_device, base.device, base.device.c.id == _one.device_id)
    taking = _one.state.in_(("offered", "taken"))
    query = sa.select(sa.func.count()).select_from(joined)
    query = query.where(_one.rollout_id == rollout, taking, base.device.c.group_name == group)
    return max(1, bandwidth // max(1, int((await connection.execute(query)).scalar_one())))


_pick_row, _rollout, _release = rollout_tables.device_pick, rollout_tables.rollout, rollout_tables.release
_PICK: Final = (
    sa.select(
        _pick_row.c.sequence,
        _pick_row.c.action,
        _pick_row.c.rollout_id,
        _rollout.c.state,
        _one.state.label("standing"),
        _rollout.c.terms,
        _rollout.c.content,
        _rollout.c.channel,
        _release.c.generation,
        _release.c.target_sha256,
        _release.c.target_length,
    )
    .select_from(_pick_row)
    .outerjoin(_rollout, _rollout.c.id == _pick_row.c.rollout_id)
    .outerjoin(
        rollout_tables.rollout_device,
        sa.and_(_one.rollout_id == _pick_row.c.rollout_id, _one.device_id == _pick_row.c.device_id),
    )
    .outerjoin(_release, _release.c.id == _rollout.c.release_id)
    .where(_pick_row.c.device_id == sa.bindparam("device"))
)
