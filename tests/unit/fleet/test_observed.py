"""What is installed where, and how the fleet was: against both databases, with a clock of the test's own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import uuid

import pytest
import sqlalchemy as sa

from casemate.clock import SystemClock
from casemate.errors import NotFoundError, UsageError
from casemate.fleet import devices, inventory, listing, packages, serve, trend
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.listing import Filter
from casemate.fleet.packages import Wanted
from casemate.fleet.seen import BUCKET
from casemate.fleet.states import State
from casemate.fleet.store import rollout_tables, schema, tables
from casemate.formats.fleet_api import CheckIn, Health, Inventory, Item
from support import databases

NOON = 1_800_000_000 // 7200 * 7200 + 3600.0
ENGINE = {number: Item("engine", "llama.cpp", f"b{number}", f"{number:064x}") for number in (1, 2)}
OPENSSL = Item("dpkg", "openssl", "3.0.11")


class Clock(SystemClock):
    def __init__(self):
        self.now = NOON

    def wall(self):
        return self.now


@pytest.fixture(params=databases.KINDS)
def kind(request):
    return request.param


@contextlib.asynccontextmanager
async def opened(directory, kind):
    directory.mkdir(exist_ok=True)
    home, clock = FleetHome(directory / "fleet"), Clock()
    await serve.prepare(home, clock, serve.Options(database=databases.new(kind, directory)))
    fleet = Fleet.open(home, clock)
    fleet.clock = clock  # ours alone, also where the database has a time of its own
    try:
        yield fleet
    finally:
        await fleet.store.close()


async def add(fleet, asset, state=State.ENROLLED, **more):
    async with fleet.store.write() as connection:
        name = await devices.create(
            connection, fleet.audit, asset=asset, group="", state=state, by="token", key="ab" * 32, now=fleet.clock.now
        )
        if more:
            await connection.execute(sa.update(tables.device).where(tables.device.c.id == name).values(**more))
        return name


async def found(fleet, **wanted):
    async with fleet.store.read() as connection:
        rows = await packages.find(connection, Wanted(**wanted))
    return [(one["name"], one["version"], one["devices"]) for one in rows.packages]


def test_the_devices_that_run_an_engine_are_found(tmp_path, kind):
    async def work():
        async with opened(tmp_path, kind) as fleet:
            names = [await add(fleet, f"till-{number}") for number in range(3)]
            for name, version in zip(names, (1, 1, 2), strict=True):
                await inventory.store(fleet, name, Inventory((ENGINE[version], OPENSSL)))
            gone = await add(fleet, "till-9", State.WIPED)
            await inventory.store(fleet, gone, Inventory((ENGINE[2],)))
            assert await found(fleet, kind="engine") == [("llama.cpp", "b1", 2), ("llama.cpp", "b2", 1)]
            assert await found(fleet) == await found(fleet, kind="engine"), "packages are for who searches"
            assert await found(fleet, name="open") == [("openssl", "3.0.11", 3)]
            assert await found(fleet, name="openssl", version="3.0") == [("openssl", "3.0.11", 3)]
            assert await found(fleet, digest="0" * 63 + "2") == [("llama.cpp", "b2", 1)]
            assert await found(fleet, name="%") == await found(fleet, name="pen") == []
            async with fleet.store.read() as connection:
                first = (await packages.find(connection, Wanted(kind="engine"))).packages[0]
                shown = await packages.show(connection, first["id"])
                assert [one["version"] for one in shown["versions"]] == ["b1", "b2"]
                page = await listing.page(connection, Filter(package=first["id"]), fleet.clock.now)
                assert [one["asset"] for one in page.devices] == ["till-0", "till-1"]
                with pytest.raises(NotFoundError):
                    await packages.show(connection, 10**6)
                for wanted in (Wanted(kind="nonsense"), Wanted(name="a\0b")):
                    with pytest.raises(UsageError):
                        await packages.find(connection, wanted)
            await inventory.store(fleet, names[2], Inventory((ENGINE[1],)))
            assert await found(fleet, kind="engine") == [("llama.cpp", "b1", 3)]
            async with fleet.store.write() as connection:
                await connection.execute(
                    sa.delete(tables.device_packages).where(tables.device_packages.c.device_id != names[2])
                )
                await inventory.prune(connection)
                left = (await connection.execute(sa.select(tables.package.c.version))).scalars().all()
            assert left == ["b1"], "what nobody has is forgotten"

    asyncio.run(work())


def cursor_of(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def test_pages_of_packages_follow_each_other(tmp_path, kind):
    random.seed(3)
    items = [Item("python", f"p{number % 40:02}", f"{number}.{number % 3}") for number in range(230)]

    async def work():
        async with opened(tmp_path, kind) as fleet:
            name = await add(fleet, "till-1")
            await inventory.store(fleet, name, Inventory(tuple(random.sample(items, len(items)))))
            seen, cursor = [], ""
            async with fleet.store.read() as connection:
                while True:
                    page = await packages.find(connection, Wanted(kind="python"), cursor=cursor, size=37)
                    seen += [(one["name"], one["version"]) for one in page.packages]
                    if not (cursor := page.cursor):
                        break
                for forged in ("!!", cursor_of(["a", "b", 10**30]), cursor_of(["a\0", "", 1]), cursor_of(["a"])):
                    with pytest.raises(UsageError):
                        await packages.find(connection, Wanted(), cursor=forged)
            assert len(seen) == len(set(seen)) == len(items)
            assert set(seen) == {(item.name, item.version) for item in items}

    asyncio.run(work())


def test_what_was_sent_before_the_search_existed_is_found(tmp_path, kind):
    async def work():
        async with opened(tmp_path, kind) as fleet:
            await inventory.store(fleet, await add(fleet, "till-1"), Inventory((ENGINE[1], OPENSSL)))
            await schema.downgrade(fleet.store, "0003")
            await schema.upgrade(fleet.store)
            assert await found(fleet, name="llama") == [("llama.cpp", "b1", 1)]
            new = Inventory((ENGINE[2], OPENSSL))
            await inventory.store(fleet, await add(fleet, "till-2"), new)
            assert await found(fleet, name="openssl") == [("openssl", "3.0.11", 2)]

    asyncio.run(work())


def test_the_trend_has_levels_sums_and_gaps(tmp_path, kind):
    async def work():
        async with opened(tmp_path, kind) as fleet:
            strong = {"assurance": "L3", "assurance_expires": NOON + 9000}
            first, second = await add(fleet, "till-1", **strong), await add(fleet, "till-2")
            await add(fleet, "till-3", State.QUARANTINED)
            await add(fleet, "till-4", assurance="L3", assurance_expires=NOON - 1)
            fleet.seen.put(first, CheckIn("ok", "1", NOON, health=Health(51.5, load=0.5)), NOON)
            fleet.seen.put(second, CheckIn("degraded", "1", NOON, health=Health(integrity_failures=2)), NOON)
            await fleet.seen.flush()
            async with fleet.store.write() as connection:
                for granted, when in ((True, NOON), (False, NOON + 1), (False, NOON - BUCKET)):
                    await connection.execute(
                        sa.insert(tables.key_grant).values(
                            device_id=first, model="m", granted=granted, reason="", created=when
                        )
                    )
            await trend.sample(fleet)
            await trend.sample(fleet)
            fleet.clock.now = NOON + 2 * BUCKET
            await trend.sample(fleet)
            async with fleet.store.read() as connection:
                steps = (await trend.over(connection, "6h", fleet.clock.now)).steps
                week = await trend.over(connection, "week", fleet.clock.now)
                with pytest.raises(UsageError):
                    await trend.over(connection, "year", fleet.clock.now)
            assert [step["time"] - NOON for step in steps] == [0, 2 * BUCKET], "no server, no row: a gap"
            at, later = steps
            assert (at["enrolled"], at["online"], at["attested"], at["quarantined"]) == (3, 2, 1, 1)
            assert (at["degraded"], at["keys_granted"], at["keys_refused"]) == (1, 1, 1)
            assert (at["integrity_failures"], at["temperature_max"]) == (2, 51.5)
            assert (later["online"], later["temperature_max"], later["keys_refused"]) == (0, None, 0)
            assert [step["online"] for step in week.steps] == [1.0]
            assert week.steps[0]["online_min"] == 0

    asyncio.run(work())


def test_news_that_comes_late_is_counted_where_it_belongs(tmp_path):
    async def work():
        async with opened(tmp_path, "sqlite") as fleet:
            name = await add(fleet, f"d-{uuid.uuid4().hex[:6]}")
            await trend.sample(fleet)
            fleet.seen.put(name, CheckIn("ok", "1", NOON, health=Health(integrity_failures=1)), NOON + 1)
            fleet.clock.now = NOON + BUCKET
            await fleet.seen.flush()
            await trend.sample(fleet)
            async with fleet.store.read() as connection:
                steps = (await trend.over(connection, "6h", fleet.clock.now)).steps
            assert [step["integrity_failures"] for step in steps] == [1, 0]

    asyncio.run(work())


def test_the_first_token_is_ranked_over_devices_that_measured_it(tmp_path, kind):
    """Against sorting them here: those that are out, failed, or measured nothing are not of them."""
    chance = random.Random(7)

    async def work():
        async with opened(tmp_path / "speed", kind) as fleet:
            await trend.sample(fleet)
            async with fleet.store.read() as connection:
                (step,) = (await trend.over(connection, "6h", fleet.clock.now)).steps
                assert step["first_token_median"] is None, "nobody measured it"
            fleet.clock.now += BUCKET
            good = [round(chance.uniform(50, 900), 1) for _ in range(41)]
            words = [("good", value, State.ENROLLED) for value in good]
            words += [("failed", 9000.0, State.ENROLLED), ("good", None, State.ENROLLED), ("good", 1.0, State.REVOKED)]
            for number, (outcome, value, state) in enumerate(words):
                device = await add(fleet, f"till-{number}", state)
                row = {"device_id": device, "content": "c" * 64, "outcome": outcome, "first_token_ms": value}
                async with fleet.store.write() as connection:
                    insert = sa.insert(rollout_tables.device_generation)
                    await connection.execute(insert.values(**row, envelope=b"", changed=NOON))
            await trend.sample(fleet)
            fleet.clock.now += BUCKET
            async with fleet.store.write() as connection:  # the fleet is slower five minutes later
                column = rollout_tables.device_generation.c.first_token_ms
                await connection.execute(
                    sa.update(rollout_tables.device_generation).values(first_token_ms=column + 100)
                )
            await trend.sample(fleet)
            async with fleet.store.read() as connection:
                steps = (await trend.over(connection, "6h", fleet.clock.now)).steps
                (week,) = (await trend.over(connection, "week", fleet.clock.now)).steps
            return sorted(good), steps, week

    good, steps, week = asyncio.run(work())
    assert [step["first_token_median"] for step in steps] == [None, good[20], round(good[20] + 100, 1)]
    assert [step["first_token_p95"] for step in steps] == [
        None,
        good[38],
        round(good[38] + 100, 1),
    ]  # 39 of 41 are 19 in 20
    assert week["first_token_median"] == pytest.approx(good[20] + 50, abs=0.11)
    assert week["first_token_p95"] == round(good[38] + 100, 1), "the highest of a step, not their middle"
