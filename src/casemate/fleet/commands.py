"""Commands to devices: signed here, fetched by the device, finished by its signed answer.

The signing key is not part of a running listener. Whoever may command (the people's side, the command line on the
server) opens it, signs, and stores the envelope; listeners only hand envelopes out.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.crypto import authority
from casemate.crypto.signing import SigningKey
from casemate.errors import NotFoundError
from casemate.fleet.changes import note_change
from casemate.fleet.states import State
from casemate.fleet.store import tables
from casemate.formats import envelope
from casemate.formats.envelope import Command, Verb, VerifiedAnswer
from casemate.formats.fleet_api import Delivery

LIFE: Final = 14 * 86400
"""Seconds a command can wait; `renew` signs the ones that must not end anew."""
RENEW_BEFORE: Final = 7 * 86400
PER_CHECKIN: Final = 16
_LASTING: Final = (Verb.WIPE, Verb.QUARANTINE)
_HOLDS: Final = {State.WIPING: Verb.WIPE, State.QUARANTINED: Verb.QUARANTINE}
"""What a device in such a state must have been told: if it refused that, it is told again."""
REPEAT: Final = 600.0
"""Seconds until it is."""


class Commander:
    """Signs commands of one fleet."""

    def __init__(self, fleet: str, key: SigningKey) -> None:
        """Sign with *key*, the one the charter names."""
        self._fleet = fleet
        self._key = key

    async def issue(
        self, connection: AsyncConnection, device: str, verb: Verb, *, actor: str, now: float, reason: str = ""
    ) -> str:
        """Store a command for *device* in the caller's transaction and return its id. The device hears at once."""
        row = await connection.execute(
            sa.update(tables.device)
            .where(tables.device.c.id == device)
            .values(
                command_sequence=tables.device.c.command_sequence + 1,
                commands_waiting=tables.device.c.commands_waiting + 1,
            )
            .returning(tables.device.c.command_sequence)
        )
        sequence = row.scalar_one_or_none()
        if sequence is None:
            raise NotFoundError(f"no device {device}")
        command = Command(
            schema=1,
            fleet=self._fleet,
            device=device,
            sequence=sequence,
            verb=str(verb),
            issued=int(now),
            expires=int(now) + LIFE,
            reason="".join(each for each in reason if " " <= each <= "~")[:200],
        )
        name = secrets.token_hex(8)
        await connection.execute(
            sa.insert(tables.command).values(
                id=name,
                device_id=device,
                sequence=sequence,
                verb=str(verb),
                envelope=envelope.sign_command(command, self._key),
                state="waiting",
                created=now,
                created_by=actor,
                expires=now + LIFE,
            )
        )
        await note_change(connection, device, "command", now)
        return name

    async def renew(self, connection: AsyncConnection, now: float) -> int:
        """Sign wipes and quarantines anew that would end before they were carried out; returns how many."""
        command = tables.command.c
        near = sa.and_(command.state == "waiting", command.expires < now + RENEW_BEFORE, command.verb.in_(_LASTING))
        rows = (await connection.execute(sa.select(command.id, command.device_id, command.verb).where(near))).all()
        renewed = 0
        for row in rows:
            if await _finish(connection, row.id, row.device_id, "expired", now):
                renewed += 1
                verb = Verb(row.verb)
                await self.issue(connection, row.device_id, verb, actor="server", now=now, reason="signed anew")
        return renewed + await self._repeat(connection, now)

    async def _repeat(self, connection: AsyncConnection, now: float) -> int:
        """Order again what must hold and was refused: its number was too low, or it came too late."""
        command, newer, device = tables.command.c, tables.command.alias("newer"), tables.device.c
        replaced = sa.exists().where(newer.c.device_id == command.device_id, newer.c.sequence > command.sequence)
        must = sa.or_(
            *(sa.and_(device.state == str(state), command.verb == str(verb)) for state, verb in _HOLDS.items())
        )
        query = (
            sa.select(command.device_id, command.verb)
            .join(tables.device, device.id == command.device_id)
            .where(device.state.in_(_HOLDS), must)
            .where(command.state == "failed", command.finished < now - REPEAT, ~replaced)
        )
        rows = (await connection.execute(query)).all()
        for row in rows:
            await self.issue(connection, row.device_id, Verb(row.verb), actor="server", now=now, reason="ordered again")
        return len(rows)


async def waiting(connection: AsyncConnection, device: str, now: float) -> tuple[Delivery, ...]:
    """Return what *device* has yet to do, oldest first."""
    command = tables.command.c
    rows = await connection.execute(
        sa.select(command.id, command.envelope)
        .where(command.device_id == device, command.state == "waiting", command.expires > now)
        .order_by(command.sequence)
        .limit(PER_CHECKIN)
    )
    return tuple(Delivery(row.id, bytes(row.envelope)) for row in rows)


async def acknowledge(
    connection: AsyncConnection, name: str, device: str, *, certificate: bytes, raw: bytes, now: float
) -> tuple[VerifiedAnswer, bool]:
    """Check the answer of *device* to its command *name* and store it.

    An answer whose receipt got lost comes again and is stored once: the result says whether this was the time.

    Raises:
        NotFoundError: it was never given such a command, or it ended unanswered.
        UntrustedDataError: not its signed answer to this command.

    """
    command = tables.command.c
    query = sa.select(command.envelope, command.state).where(
        command.id == name, command.device_id == device, command.state.in_(("waiting", "done", "failed"))
    )
    stored = (await connection.execute(query.with_for_update())).one_or_none()
    if stored is None:
        raise NotFoundError("no such command waits for an answer")
    public = authority.public_key(certificate)
    answer = envelope.verify_answer(raw, public=public, device=device, command=bytes(stored.envelope))
    outcome = "done" if answer.answer.outcome == "done" else "failed"
    if stored.state == "waiting":
        await _finish(connection, name, device, outcome, now, acknowledgement=raw)
    elif stored.state != outcome:
        raise NotFoundError("this command was answered otherwise")
    return answer, stored.state == "waiting"


async def expire(connection: AsyncConnection, now: float) -> int:
    """End commands whose time is over; returns how many."""
    command = tables.command.c
    past = sa.and_(command.state == "waiting", command.expires <= now)
    rows = (await connection.execute(sa.select(command.id, command.device_id).where(past))).all()
    return sum([await _finish(connection, row.id, row.device_id, "expired", now) for row in rows])


async def _finish(connection: AsyncConnection, name: str, device: str, state: str, now: float, **more: Any) -> bool:
    """End a command that waits; False: it was ended meanwhile, and what its device answered stands."""
    waits = sa.and_(tables.command.c.id == name, tables.command.c.state == "waiting")
    done = await connection.execute(sa.update(tables.command).where(waits).values(state=state, finished=now, **more))
    if not done.rowcount:
        return False
    await connection.execute(
        sa.update(tables.device)
        .where(tables.device.c.id == device, tables.device.c.commands_waiting > 0)
        .values(commands_waiting=tables.device.c.commands_waiting - 1)
    )
    await note_change(connection, device, "command", now)
    return True
