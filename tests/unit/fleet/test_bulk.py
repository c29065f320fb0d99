"""Orders for many devices, on both databases: frozen when shown, confirmed by number, done once and to the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid

import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.errors import ConflictError, NotAuthorisedError, NotFoundError, UsageError
from casemate.fleet import bulk, devices, serve
from casemate.fleet.commands import Commander
from casemate.fleet.context import Fleet
from casemate.fleet.devices import Change
from casemate.fleet.home import FleetHome
from casemate.fleet.listing import Filter
from casemate.fleet.states import Event, State
from casemate.fleet.store import desk, tables
from support import databases

SHOPS = Filter(group="shops")


@dataclasses.dataclass
class Desk:
    fleet: Fleet
    commander: Commander

    async def show(self, wish, actor="Ada"):
        async with self.fleet.store.write() as connection:
            return await bulk.show(connection, wish, actor, self.fleet.clock.wall())

    async def describe(self, known):
        async with self.fleet.store.read() as connection:
            return await bulk.describe(connection, known)

    async def confirm(self, known, count, actor="Ada"):
        async with self.fleet.store.write() as connection:
            await bulk.confirm(connection, self.fleet, known, count, actor)

    async def carry_out(self, known, most=bulk.MOST):
        return await bulk.carry_out(self.fleet, self.commander, known, most)

    async def apply(self, name, event):
        change = Change(event, "Eve", self.fleet.clock.wall())
        async with self.fleet.store.write() as connection:
            await devices.apply(connection, self.fleet.audit, name, change, self.commander)

    async def states(self):
        device = tables.device.c
        async with self.fleet.store.read() as connection:
            rows = await connection.execute(sa.select(device.asset, device.state, device.group_name))
            return {row.asset: (row.state, row.group_name) for row in rows}

    async def actions(self):
        async with self.fleet.store.read() as connection:
            entries = await self.fleet.audit.newest(connection, 500)
        return [(each["action"], each["detail"]) for each in entries]


@pytest.fixture(params=databases.KINDS)
def run(request, tmp_path):
    """Run a coroutine function on a fleet of 60 devices in shops, of which one is quarantined, and one elsewhere."""

    async def fill(fleet, commander):
        now = fleet.clock.wall()
        common = {"enrolled_by": "token", "created": now, "changed": now, "key_digest": "0" * 64, "state": "enrolled"}
        rows = [{"id": str(uuid.uuid4()), "asset": f"till-{n:02}", "group_name": "shops", **common} for n in range(60)]
        rows.append({"id": str(uuid.uuid4()), "asset": "lab-1", "group_name": "lab", **common})
        async with fleet.store.write() as connection:
            await connection.execute(sa.insert(tables.device), rows)
        await Desk(fleet, commander).apply("till-07", Event.QUARANTINE)

    def call(work):
        async def inside():
            home, clock = FleetHome(tmp_path / "fleet"), SystemClock()
            await serve.prepare(home, clock, serve.Options(database=databases.new(request.param, tmp_path)))
            fleet = Fleet.open(home, clock)
            async with contextlib.aclosing(_Closing(fleet)):
                commander = Commander(fleet.settings.fleet, home.signing_key("commands"))
                await fill(fleet, commander)
                return await work(Desk(fleet, commander))

        return asyncio.run(inside())

    return call


@dataclasses.dataclass
class _Closing:
    fleet: Fleet

    async def aclose(self):
        await self.fleet.store.close()


def test_what_was_shown_is_what_is_done_and_nothing_before_it_is_confirmed(run):
    async def work(desk_):
        known = await desk_.show(bulk.Wish("quarantine", SHOPS, reason="flood"))
        shown = await desk_.describe(known)
        assert (shown.count, shown.left_out, shown.state, shown.sample[:2]) == (59, 1, "shown", ("till-00", "till-01"))
        assert await desk_.carry_out(known) == 0, "not confirmed"
        await desk_.apply("till-03", Event.REVOKE)
        async with desk_.fleet.store.write() as connection:
            await devices.move(connection, desk_.fleet.audit, "lab-1", "shops", actor="Eve", now=1.0)
        await desk_.confirm(known, 59)
        assert await desk_.carry_out(known, bulk.CHUNK) == bulk.CHUNK
        assert (await desk_.describe(known)).state == "running", "a server that stops here goes on when it starts"
        await bulk.sweep(desk_.fleet, desk_.commander)
        ended = await desk_.describe(known)
        assert (ended.state, ended.done, ended.refused) == ("done", 58, 1)
        states = await desk_.states()
        assert states["lab-1"] == (State.ENROLLED, "shops"), "it came later and is in no frozen set"
        assert states["till-03"][0] == State.REVOKED, "it changed meanwhile and is left as it is"
        assert sum(state == State.QUARANTINED for state, _ in states.values()) == 59
        actions = await desk_.actions()
        (begun,) = [detail for action, detail in actions if action == "bulk.quarantine"]
        assert (begun["count"], len(begun["assets"]), begun["reason"]) == (59, 59, "flood")
        assert [detail["done"] for action, detail in actions if action == "bulk.quarantine.done"] == [58]
        own = [
            detail for action, detail in actions if action == "device.quarantine" and known in detail.get("reason", "")
        ]
        assert len(own) == 58, "and every device has an entry of its own"

    run(work)


def test_who_confirms_looked_at_it_lately_and_knows_the_number(run):
    async def work(desk_):
        known = await desk_.show(bulk.Wish("move", SHOPS, "depot"))
        with pytest.raises(UsageError, match="60 devices"):
            await desk_.confirm(known, 59)
        with pytest.raises(NotAuthorisedError):
            await desk_.confirm(known, 60, "Eve")
        with pytest.raises(NotFoundError):
            await desk_.confirm("0" * 32, 60)
        async with desk_.fleet.store.write() as connection:
            await connection.execute(sa.update(desk.bulk).values(expires=1.0))
        with pytest.raises(ConflictError):
            await desk_.confirm(known, 60)
        await bulk.sweep(desk_.fleet, desk_.commander)
        with pytest.raises(NotFoundError):
            await desk_.describe(known)
        again = await desk_.show(bulk.Wish("move", SHOPS, "depot"))
        await desk_.confirm(again, 60)
        with pytest.raises(ConflictError):
            await desk_.confirm(again, 60)
        await asyncio.gather(*(desk_.carry_out(again) for _ in range(3)))
        assert (await desk_.describe(again)).done == 60
        assert sum(group == "depot" for _, group in (await desk_.states()).values()) == 60
        moves = [detail for action, detail in await desk_.actions() if action == "device.move"]
        assert len(moves) == 60, "three servers at once, and each device is moved once"

    run(work)


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        (bulk.Wish("wipe", SHOPS), UsageError),
        (bulk.Wish("move", SHOPS), UsageError),
        (bulk.Wish("move", SHOPS, "Not A Name"), UsageError),
        (bulk.Wish("quarantine", SHOPS, "depot"), UsageError),
    ],
)
def test_what_makes_no_sense_for_many_is_refused(wish, error):
    with pytest.raises(error):
        bulk.parse(wish)
