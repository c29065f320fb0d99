"""Who is calling: the serial number of the connection's certificate, looked up in our own records on every request.

The TLS layer proved that the caller holds the key of a certificate we issued. Whether that certificate and that device
still count is decided here, from the database, at most `FRESH` seconds ago: a revocation reaches kept-alive and resumed
connections without a list. Look-ups that arrive together become one query, so a hundred thousand devices that each call
once a minute cost a query per batch.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from casemate.clock import Clock
from casemate.errors import NotAuthorisedError, PolicyDeniedError
from casemate.fleet.states import State, Use, may
from casemate.fleet.store import Store, rollout_tables, tables

FRESH: Final = 0.9
"""Seconds; a change made in this process, or heard of, is seen at once."""
_KEPT: Final = 50_000
_BATCH: Final = 500
GATHER_SECONDS: Final = 0.005
"""How long a look-up waits for others to be looked up with it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """A device as our records have it."""

    id: str
    asset: str
    group: str
    state: State
    serial: str
    certificate_state: str
    not_before: float
    not_after: float
    commands_waiting: int
    assurance: str
    assurance_expires: float
    inventory: str | None
    attests: bool
    """It enrolled with a TPM: it can be asked for evidence."""
    pick: int | None
    """The sequence of what the director says to it; None: nothing yet."""


class Directory:
    """Records of devices by certificate serial."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Read from *store*."""
        self._store = store
        self._clock = clock
        self._standing = store.standing(_standing_query()) if store.is_postgresql else None
        self._held: collections.OrderedDict[str, tuple[float, Known | None]] = collections.OrderedDict()
        self._serials: dict[str, set[str]] = {}
        self._asked: dict[str, asyncio.Future[Known | None]] = {}
        self._worker: asyncio.Task[None] | None = None
        self._meanwhile: set[str] | None = None
        """Devices that changed since the running query began: what it says of them may be the past. None: none runs."""

    async def admit(self, serial: str, use: Use) -> Known:
        """Return the device that may do *use* now.

        Raises:
            NotAuthorisedError: no such certificate, expired, superseded or revoked.
            PolicyDeniedError: the device's state forbids it.

        """
        known = await self.find(serial)
        now = self._clock.wall()
        if known is None or known.certificate_state != "active" or not known.not_before <= now <= known.not_after:
            raise NotAuthorisedError("this certificate is not one of an enrolled device", hint="enrol again")
        if known.state is State.REVOKED:
            raise NotAuthorisedError("this device was revoked")
        if not may(known.state, use):
            raise PolicyDeniedError(f"a device that is {known.state} may not do this")
        return known

    async def find(self, serial: str) -> Known | None:
        """Return the record behind *serial*, at most `FRESH` seconds old."""
        held = self._held.get(serial)
        if held and self._clock.monotonic() - held[0] < FRESH:
            return held[1]
        future = self._asked.get(serial)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._asked[serial] = future
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._answer())
        return await asyncio.shield(future)

    def forget(self, device: str) -> None:
        """Drop what is held about *device*: it changed."""
        if self._meanwhile is not None:  # a server that is asked by no device hears of every change, too
            self._meanwhile.add(device)
        for serial in self._serials.pop(device, ()):
            self._held.pop(serial, None)

    async def _answer(self) -> None:
        while self._asked:
            await asyncio.sleep(GATHER_SECONDS)
            batch = dict(list(self._asked.items())[:_BATCH])
            for serial in batch:
                del self._asked[serial]  # who asks from here on may need something newer
            # the moment counts from before the query: what is read cannot be younger
            started = self._clock.monotonic()
            meanwhile = self._meanwhile = set[str]()
            try:
                found = await self._query(list(batch))
            except Exception as error:  # noqa: BLE001 - whoever waits gets the failure; nobody is let through
                for future in batch.values():
                    if not future.done():
                        future.set_exception(error)
                        future.exception()  # a caller that left must not become a warning
                continue
            finally:
                self._meanwhile = None
            for serial, future in batch.items():
                known = found.get(serial)
                if known.id not in meanwhile if known else not meanwhile:
                    self._keep(serial, started, known)
                if not future.done():
                    future.set_result(known)

    def _keep(self, serial: str, started: float, known: Known | None) -> None:
        self._held[serial] = (started, known)
        self._held.move_to_end(serial)
        if known:
            self._serials.setdefault(known.id, set()).add(serial)
        while len(self._held) > _KEPT:
            old, (_, gone) = self._held.popitem(last=False)
            if gone and (serials := self._serials.get(gone.id)):
                serials.discard(old)
                if not serials:
                    del self._serials[gone.id]

    async def _query(self, serials: list[str]) -> dict[str, Known]:
        if self._standing is not None:
            return {row["serial"]: _known(row) for row in await self._standing.ask(serials)}
        async with self._store.read() as connection:
            rows = await connection.execute(_LOOK_UP, {"serials": serials})
            return {row["serial"]: _known(row) for row in rows.mappings()}  # type: ignore[arg-type]  # it is one


def _known(row: Mapping[str, Any]) -> Known:
    values = dict(row)
    values |= {"state": State(values["state"]), "attests": values["attests"] is not None}
    return Known(**values)


_device, _cert = tables.device.c, tables.device_cert.c
_RECORDS: Final = (
    sa.select(
        _device.id,
        _device.asset,
        _device.group_name.label("group"),
        _device.state,
        _cert.serial,
        _cert.state.label("certificate_state"),
        _cert.not_before,
        _cert.not_after,
        _device.commands_waiting,
        _device.assurance,
        _device.assurance_expires,
        tables.device_packages.c.digest.label("inventory"),
        tables.tpm_identity.c.device_id.label("attests"),
        rollout_tables.device_pick.c.sequence.label("pick"),
    )
    .join_from(tables.device_cert, tables.device)
    .outerjoin(tables.device_packages, tables.device_packages.c.device_id == _device.id)
    .outerjoin(tables.tpm_identity, tables.tpm_identity.c.device_id == _device.id)
    .outerjoin(rollout_tables.device_pick, rollout_tables.device_pick.c.device_id == _device.id)
)
_LOOK_UP: Final = _RECORDS.where(_cert.serial.in_(sa.bindparam("serials", expanding=True)))


def _standing_query() -> str:
    """Return the same look-up as PostgreSQL takes it: one parameter, however many serials."""
    records = _RECORDS.where(_cert.serial == sa.func.any(sa.literal_column("$1::text[]")))
    return str(records.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
