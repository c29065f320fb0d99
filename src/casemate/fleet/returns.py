"""Devices of ours whose certificate has ended and that ask to come back: who may, who waits, and a person's yes.

A device that joined with a TPM comes back with that TPM (`tpm_enrolment`) and in no other way: its disk alone, with its
old key, is what a thief has. One without a TPM shows its old key, and a person says yes to that key. Its state stays
what it was: one that was quarantined is quarantined when it is back. A device that is to be wiped needs no further yes:
it may check in and be told so, and nothing else.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from casemate.errors import ConflictError, NotAuthorisedError, PolicyDeniedError
from casemate.fleet.audit import Act, AuditLog
from casemate.fleet.changes import note_change
from casemate.fleet.states import State
from casemate.fleet.store import tables

APPROVED_SECONDS: Final = 7 * 86400.0
"""How long a yes waits for the device to ask again."""
FORGOTTEN_SECONDS: Final = 30 * 86400.0
"""A device that has not asked for so long does not wait any more."""
_NOTED_EVERY: Final = 60.0
MAY: Final = (State.ENROLLED, State.QUARANTINED, State.WIPING)
_BY_ITSELF: Final = {State.WIPING}
_return, _cert = tables.device_return.c, tables.device_cert.c


async def require_may(
    connection: AsyncConnection, device: str, serial: str, now: float, *, key: str | None = None
) -> sa.Row[Any]:
    """Return the record, locked, of *device*, which shows up with the certificate *serial*.

    *key*: the digest of the key that it proved, which is asked for first; None: it is about to prove a TPM, or has.

    Raises:
        NotAuthorisedError: there is none, or its last certificate is for another key.
        PolicyDeniedError: it is out, for good.
        ConflictError: its certificate holds, and renews itself.

    """
    query = sa.select(tables.device).where(tables.device.c.id == device).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    if row is None or (key is not None and not _is_key_of(row, key)):
        raise NotAuthorisedError("no device of this fleet has this key", hint="enrol it with a one-time token")
    if row.state not in MAY:
        raise PolicyDeniedError(f"this device is {row.state}", hint="only enrolling it anew brings it back")
    held = sa.select(_cert.serial).where(
        _cert.device_id == row.id, _cert.serial == serial, _cert.state == "active", _cert.not_after > now
    )
    if (await connection.execute(held)).first():
        raise ConflictError("this device's certificate holds", hint="it is renewed over the devices' listener")
    return row


def _is_key_of(device: sa.Row[Any], key: str) -> bool:
    return device.certificate_expires is not None and hmac.compare_digest(device.key_digest, key)


async def is_let_in(connection: AsyncConnection, audit: AuditLog, device: sa.Row[Any], now: float) -> bool:
    """Whether *device*, which proved its key and nothing else, gets a certificate now; one that does not waits.

    Raises:
        PolicyDeniedError: it joined with a TPM.

    """
    tpm = sa.select(tables.tpm_identity.c.device_id).where(tables.tpm_identity.c.device_id == device.id)
    if (await connection.execute(tpm)).first():
        raise PolicyDeniedError(
            "this device joined with a TPM and comes back with that TPM alone",
            hint="was its TPM cleared or changed? enrol it anew under its asset tag",
        )
    if device.state in _BY_ITSELF:
        return True
    waits = (await connection.execute(sa.select(tables.device_return).where(_return.device_id == device.id))).first()
    if waits and waits.approved is not None and waits.approved + APPROVED_SECONDS > now:
        return True
    await _wait(connection, audit, device, waits, now)
    return False


async def _wait(
    connection: AsyncConnection, audit: AuditLog, device: sa.Row[Any], waits: sa.Row[Any] | None, now: float
) -> None:
    values = {"seen": now, "approved": None, "approved_by": None}
    if waits is None:
        row = {"device_id": device.id, "asked": now, **values}
        await connection.execute(sa.insert(tables.device_return).values(row))
        await audit.append(connection, Act("device", "device.return.asks", device.id, device.asset), now)
        await note_change(connection, device.id, "state", now)
    elif waits.seen + _NOTED_EVERY < now:
        await connection.execute(sa.update(tables.device_return).where(_return.device_id == device.id).values(values))


async def approve(connection: AsyncConnection, audit: AuditLog, device: sa.Row[Any], act: Act, now: float) -> bool:
    """Say yes to *device*, as *act*; returns whether it asked. Its state stays what it is."""
    said = await connection.execute(
        sa.update(tables.device_return)
        .where(_return.device_id == device.id)
        .values(approved=now, approved_by=act.actor)
    )
    if not said.rowcount:
        return False
    await note_change(connection, device.id, "state", now)
    await audit.append(connection, act, now)
    return True


async def settled(connection: AsyncConnection, device: str, serial: str) -> None:
    """Note that *device* is back with the certificate *serial*: nothing older of it counts, and it waits no more."""
    await connection.execute(
        sa.update(tables.device_cert)
        .where(_cert.device_id == device, _cert.state == "active", _cert.serial != serial)
        .values(state="superseded")
    )
    await connection.execute(sa.delete(tables.device_return).where(_return.device_id == device))


async def waiting(connection: AsyncConnection, limit: int | None = None) -> Sequence[sa.Row[Any]]:
    """Return who waits for a yes, the one that waits longest first."""
    device = tables.device.c
    columns = (device.id, device.asset, device.certificate_expires, _return.asked, _return.seen)
    query: sa.Select[Any] = sa.select(*columns).join_from(
        tables.device_return, tables.device, device.id == _return.device_id
    )
    query = query.where(_return.approved.is_(None), device.state.in_(MAY)).order_by(_return.asked).limit(limit)
    rows: Sequence[sa.Row[Any]] = (await connection.execute(query)).all()
    return rows


async def of(connection: AsyncConnection, device: str) -> dict[str, Any] | None:
    """Return since when *device* asks to come back, and who said yes."""
    columns = (_return.asked, _return.seen, _return.approved, _return.approved_by)
    row = (await connection.execute(sa.select(*columns).where(_return.device_id == device))).mappings().first()
    return dict(row) if row else None


async def prune(connection: AsyncConnection, now: float) -> None:
    """Forget who does not ask any more, and a yes that nobody came for."""
    silent = sa.and_(_return.seen < now - FORGOTTEN_SECONDS, _return.approved.is_(None))
    stale = _return.approved < now - APPROVED_SECONDS
    await connection.execute(sa.delete(tables.device_return).where(sa.or_(silent, stale)))
