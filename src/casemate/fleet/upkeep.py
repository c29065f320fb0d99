"""What runs beside the requests: flushing, hearing of changes, sweeping. A task that fails is tried again, and said."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import sqlalchemy as sa

from casemate.errors import CasemateError
from casemate.fleet import (
    alerts,
    approvals,
    bulk,
    changes,
    commands,
    ingest,
    inventory,
    keybroker,
    mail,
    results,
    returns,
    trend,
    webhook,
)
from casemate.fleet.api import once
from casemate.fleet.changes import Ears, Notices, Nudges
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.leader import KEEP_SECONDS
from casemate.fleet.rollout import releases, steward
from casemate.fleet.seen import FLUSH_SECONDS
from casemate.fleet.shared_clock import SETTLE_SECONDS
from casemate.fleet.states import State
from casemate.fleet.store import partitions, tables
from casemate.fleet.usage import reports

SWEEP_SECONDS: Final = 15.0
WEBHOOK_SECONDS: Final = 5.0
PRUNE_SECONDS: Final = 3600.0
BULK_SECONDS: Final = 1.0
NONCES_KEPT: Final = 3600.0
_BACK_OFF: Final = 10.0
_log = logging.getLogger("casemate.fleet")


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """Something done every so many seconds."""

    name: str
    seconds: float
    act: Callable[[], Awaitable[object]]
    alone: bool = False
    """Of several servers one does it: the one that `Leader` says."""


def tasks(fleet: Fleet, commander: Commander | None) -> list[Task]:
    """Return what a server does beside answering; the sweep of commands only where they can be signed."""

    async def prune() -> None:
        await changes.prune(fleet.store, fleet.clock.wall())
        await partitions.keep(fleet.store, fleet.clock.wall())
        await _prune(fleet)

    async def forget() -> None:
        await keybroker.prune(fleet.store, fleet.clock.wall(), fleet.settings.grant_days * 86400.0)
        await results.prune(fleet.store, fleet.clock.wall(), fleet.settings.evidence_days * 86400.0)

    rows = [
        Task("flush", FLUSH_SECONDS, fleet.seen.flush),
        Task("clock", SETTLE_SECONDS, fleet.clock.settle),
        Task("lead", KEEP_SECONDS, fleet.leader.keep),
        Task("unblock", KEEP_SECONDS, fleet.store.unblock),
        Task("count", SWEEP_SECONDS, lambda: count(fleet)),
        Task("prune", PRUNE_SECONDS, prune, alone=True),
        Task("evidence", PRUNE_SECONDS, forget, alone=True),
    ]
    if commander is not None:
        signer = commander  # bound for the closure below

        async def sweep() -> None:
            now = fleet.clock.wall()
            async with fleet.store.write() as connection:
                await signer.renew(connection, now)
                await commands.expire(connection, now)
                await approvals.carry_out(connection, fleet.audit, signer, now)

        rows += [
            Task("commands", SWEEP_SECONDS, sweep, alone=True),
            Task("alerts", SWEEP_SECONDS, lambda: alerts.sweep(fleet), alone=True),
            Task("sample", trend.SAMPLE_SECONDS, lambda: trend.sample(fleet), alone=True),
            Task("bulk", BULK_SECONDS, lambda: bulk.sweep(fleet, signer), alone=True),
            Task("letters", SWEEP_SECONDS, lambda: mail.gather(fleet), alone=True),
            Task("mail", WEBHOOK_SECONDS, lambda: mail.deliver(fleet)),
            Task("webhook", WEBHOOK_SECONDS, lambda: webhook.deliver(fleet)),
            Task("rollouts", steward.LOOK_SECONDS, lambda: steward.look(fleet), alone=True),
            Task("releases", releases.REFRESH_SECONDS, lambda: releases.refresh(fleet), alone=True),
        ]
    return rows


def ears(fleet: Fleet) -> Ears:
    """Return what hears of changes for *fleet*: who is held about a device is forgotten, and its streams are woken."""

    def tell(devices: list[str]) -> None:
        for device in devices:
            fleet.directory.forget(device)
            fleet.hub.wake(device)

    lines: list[Nudges] = [Notices(fleet.store)] if fleet.store.is_postgresql else []
    if fleet.bus is not None:
        lines.append(fleet.bus)
        fleet.store.when_changed(fleet.bus.nudge)
    return Ears(fleet.store, tell, tuple(lines))


async def run(fleet: Fleet, task: Task, stopping: asyncio.Event) -> None:
    """Do *task* until *stopping*; a failure is logged once a row and tried again."""
    failed = False
    while not stopping.is_set():
        try:
            await _do(fleet, task)
        except CasemateError as error:
            if task.alone:
                fleet.metrics.refused("duty", error)
            if not failed:
                _log.warning("%s: %s", task.name, error.message)
            failed = True
        except Exception:  # noqa: BLE001 - a task that ends silently stops the fleet's clock
            _log.exception("%s failed", task.name)
            failed = True
        else:
            failed = False
        try:
            async with asyncio.timeout(min(task.seconds * 4, _BACK_OFF) if failed else task.seconds):
                await stopping.wait()
        except TimeoutError:
            pass


async def _do(fleet: Fleet, task: Task) -> None:
    if not task.alone:
        await task.act()
        return
    leads = False
    try:
        leads = await fleet.leader.leads(task.name)
    finally:
        fleet.metrics.leads.labels(task.name).set(leads)
    if leads:
        with fleet.store.fenced(fleet.leader.fence(task.name)):
            await task.act()


async def count(fleet: Fleet) -> None:
    """Count devices by state, for the interval of check-ins and for Prometheus; see that rollouts are looked at."""
    state = tables.device.c.state
    async with fleet.store.read() as connection:
        rows = (await connection.execute(sa.select(state, sa.func.count()).group_by(state))).all()
        waits = await steward.unattended(connection, fleet.clock.wall())
    fleet.metrics.unattended.set(waits)
    found = {row[0]: row[1] for row in rows}
    for each in State:
        fleet.metrics.devices.labels(str(each)).set(found.get(str(each), 0))
    fleet.device_count = sum(found.get(str(each), 0) for each in (State.ENROLLED, State.QUARANTINED, State.WIPING))


async def _prune(fleet: Fleet) -> None:
    now = fleet.clock.wall()
    nonce, session = tables.attest_nonce, tables.session
    async with fleet.store.write() as connection:
        await connection.execute(sa.delete(nonce).where(nonce.c.expires < now - NONCES_KEPT))
        await connection.execute(sa.delete(session).where(session.c.expires < now))
        await returns.prune(connection, now)
        await inventory.prune(connection)
        await ingest.prune(connection, now)
        await once.prune(connection, now)
        await mail.prune(connection, now)
        await trend.prune(connection, now)
        await reports.prune(connection, now)
