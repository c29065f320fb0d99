"""The fleet as the witness of its devices' journals (C2SP tlog-witness): what was seen once can never be taken back.

Per device one log is remembered: its name, its key, and the newest checkpoint that was cosigned. What may follow:

    no log yet                        the first is taken, with its key, over the device's own connection
    the same log, grown               cosigned, when the proof from what we remember holds
    the same log, the same            cosigned again
    the same log, smaller             refused: it was cut back             alert
    ... of another root, or no proof  refused: it was rewritten            alert
    ... under another key             refused: somebody else signs it      alert
    a later log of the same home      taken, and said: the old one ended   alert
    any other name                    refused                              alert

`old` that is not what we remember is answered 409 with what we do, as the standard says: the log then asks again.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response
from starlette.routing import Route

from casemate.errors import UntrustedDataError
from casemate.fleet.audit import Act
from casemate.fleet.exchange import DeviceCall, device_route
from casemate.fleet.pki import witness_name
from casemate.fleet.states import Use
from casemate.fleet.store import tables
from casemate.formats import fleet_api, tlog
from casemate.formats.tlog import AddCheckpoint, Checkpoint, VerifierKey

ALERT: Final = "journal"
_ORIGIN: Final = re.compile(r"(casemate/[0-9a-f]{16})(?:/([1-9][0-9]{0,6}))?\Z")
_SIZE_TYPE: Final = "text/x.tlog.size"


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What is remembered of a device's log."""

    origin: str
    vkey: str
    size: int
    root: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What is answered: 200 cosigned, 409 with the size we remember, or a refusal. *fault* is for people."""

    status: int
    fault: str = ""
    remember: bool = False


def judge(seen: Seen | None, key: VerifierKey, asked: AddCheckpoint, offered: Checkpoint) -> Verdict:
    """Decide about *offered*, a checkpoint whose signature by *key* holds."""
    if _parts(offered.origin) is None:
        return Verdict(404, "the log has a name that no device's journal has")
    if seen is None:
        return _first(asked)
    if offered.origin != seen.origin:
        return _other_log(seen, asked, offered)
    if str(key) != seen.vkey:
        return Verdict(403, "the log is signed with another key than before")
    if offered.size < seen.size:
        return Verdict(422, f"the log was cut back from {seen.size} to {offered.size} entries")
    if asked.old != seen.size:
        return Verdict(409)
    try:
        tlog.check_consistency(seen.size, seen.root, offered.size, offered.root, asked.proof)
    except UntrustedDataError:
        return Verdict(422, f"the log's first {seen.size} entries are not what they were: history was rewritten")
    return Verdict(200, remember=True)


def _first(asked: AddCheckpoint) -> Verdict:
    return Verdict(200, remember=True) if asked.old == 0 and not asked.proof else Verdict(409)


def _other_log(seen: Seen, asked: AddCheckpoint, offered: Checkpoint) -> Verdict:
    """Judge another name: a journal that was archived goes on under the next number of the same home."""
    before, now = _parts(seen.origin), _parts(offered.origin)
    if before is None or now is None or now[0] != before[0] or now[1] <= before[1]:
        return Verdict(404, f"the log {offered.origin} is not the one this device had")
    first = _first(asked)
    if first.status != 200:  # noqa: PLR2004 - OK
        return first
    return dataclasses.replace(first, fault=f"a new journal began: the one of {seen.size} entries was put aside")


def _parts(origin: str) -> tuple[str, int] | None:
    match = _ORIGIN.match(origin)
    return (match[1], int(match[2] or 1)) if match else None


async def add_checkpoint(call: DeviceCall) -> Response:
    """Judge a device's checkpoint, remember it durably, then cosign it."""
    message = fleet_api.parse(call.body, fleet_api.JournalCheckpoint)
    asked = tlog.parse_add_checkpoint(message.request)
    key = VerifierKey.parse(message.vkey)
    offered = tlog.open_checkpoint(asked.checkpoint, [key])
    fleet, now = call.fleet, call.now
    line = tlog.cosign(
        asked.checkpoint, witness_name(fleet.settings.fleet), fleet.home.signing_key("witness"), int(now)
    )
    async with fleet.store.write() as connection:
        seen = await _seen(connection, call.device.id)
        verdict = judge(seen, key, asked, offered)
        if verdict.remember:
            values = {
                "origin": offered.origin,
                "vkey": str(key),
                "size": offered.size,
                "root": offered.root,
                "note": asked.checkpoint + line,
                "changed": now,
            }
            await _remember(connection, call.device.id, values, new=seen is None)
        if verdict.fault:
            await _complain(connection, call, verdict.fault)
    if verdict.status == 200:  # noqa: PLR2004 - OK
        return Response(line, media_type="text/plain")
    if verdict.status == 409:  # noqa: PLR2004 - conflict
        return Response(f"{seen.size if seen else 0}\n", 409, media_type=_SIZE_TYPE)
    return Response(verdict.fault + "\n", verdict.status, media_type="text/plain")


async def _seen(connection: AsyncConnection, device: str) -> Seen | None:
    held = tables.journal_checkpoint.c
    query = sa.select(held.origin, held.vkey, held.size, held.root).where(held.device_id == device).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return Seen(row.origin, row.vkey, row.size, bytes(row.root)) if row else None


async def _remember(connection: AsyncConnection, device: str, values: dict[str, object], *, new: bool) -> None:
    table = tables.journal_checkpoint
    if new:
        await connection.execute(sa.insert(table).values(device_id=device, **values))
    else:
        await connection.execute(sa.update(table).where(table.c.device_id == device).values(values))


async def _complain(connection: AsyncConnection, call: DeviceCall, fault: str) -> None:
    """Say it where people look, once for as long as it stands: on the device, as an alert, in the audit log."""
    held, alert = tables.journal_checkpoint.c, tables.alert.c
    mark = sa.update(tables.journal_checkpoint).where(held.device_id == call.device.id).values(fault=fault)
    await connection.execute(mark)
    standing = sa.select(alert.id).where(
        alert.kind == ALERT, alert.device_id == call.device.id, alert.detail == fault, alert.closed.is_(None)
    )
    if (await connection.execute(standing)).first() is not None:
        return
    await connection.execute(
        sa.insert(tables.alert).values(
            kind=ALERT, device_id=call.device.id, asset=call.device.asset, detail=fault, opened=call.now
        )
    )
    act = Act("device", "journal.refused", call.device.id, call.device.asset, {"fault": fault})
    await call.fleet.audit.append(connection, act, call.now)


ROUTES: Final[list[Route]] = [
    device_route("POST", "/device/v1/journal/checkpoint", Use.REPORT, add_checkpoint),
]
