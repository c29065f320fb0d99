"""Results of attestation go when they are old, unless something still stands on them."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.clock import SystemClock
from casemate.errors import OperationError
from casemate.fleet import keybroker, results, serve, upkeep
from casemate.fleet.audit import Act
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.store import Store, retention, schema, tables
from support import databases

DAY = 86400.0
NOW = 20_000 * DAY
KEPT = 30 * DAY


def result(number, device, age, *, proven=True, good_for=300.0):
    """One result, *age* days old; its number is its id."""
    return {
        "id": number,
        "device_id": device,
        "status": "affirming",
        "assurance": "AL3",
        "evidence_digest": f"{number:064x}",
        "evidence": b"quote" if proven else None,
        "created": NOW - age * DAY,
        "expires": NOW - age * DAY + good_for,
    }


def grant(device, number, *, granted=True):
    return {
        "device_id": device,
        "model": "m",
        "granted": granted,
        "reason": "",
        "result_id": number,
        "created": NOW,
    }


async def filled(store, rows, grants=()):
    async with store.write() as connection:
        await connection.execute(sa.delete(tables.attest_result))
        await connection.execute(sa.delete(tables.key_grant))
        await connection.execute(sa.insert(tables.attest_result), rows)
        for each in grants:
            await connection.execute(sa.insert(tables.key_grant).values(each))


async def left(store):
    async with store.read() as connection:
        return sorted((await connection.execute(sa.select(tables.attest_result.c.id))).scalars())


@pytest.mark.parametrize("kind", databases.KINDS)
def test_what_is_old_goes_and_what_something_stands_on_stays(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(retention, "SLICE", 3)
    rows = [
        result(1, "often", 90),  # goes
        result(2, "often", 80),  # stays: a grant names it
        result(3, "often", 70),  # stays: a refusal names it
        result(4, "silent", 60),  # stays: its newest
        result(5, "broken", 59, proven=False),  # goes
        result(6, "broken", 58),  # stays: its newest proven evidence, with the TPM's counters
        result(7, "broken", 57, proven=False),  # goes
        result(8, "broken", 56, proven=False),  # stays: its newest
        result(9, "never", 55, proven=False),  # goes
        result(10, "never", 54, proven=False),  # stays: its newest, and it never proved anything
        result(11, "often", 40),  # goes: what names its number is another device's grant
        result(12, "often", 35, good_for=60 * DAY),  # stays: it is still in force
        result(13, "often", 29),  # stays: young
        result(14, "often", 1),
    ]
    named = [grant("often", 2), grant("often", 3, granted=False), grant("silent", 11), grant("silent", None)]

    async def work():
        store = Store(databases.new(kind, tmp_path))
        await schema.upgrade(store)
        await filled(store, rows, named)
        assert await results.prune(store, NOW, KEPT) == 5
        first = await left(store)
        assert await results.prune(store, NOW, KEPT) == 0  # a second time changes nothing
        assert await left(store) == first
        await store.close()
        return first

    assert asyncio.run(work()) == [2, 3, 4, 6, 8, 10, 12, 13, 14]


@pytest.mark.parametrize("kind", databases.KINDS)
def test_old_grants_go_and_what_they_named_after_them_but_none_that_runs(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(retention, "SLICE", 2)
    rows = [result(1, "d", 400), result(2, "d", 40), result(3, "d", 0)]

    def answer(number, age, ends=None):
        return {**grant("d", number, granted=ends is not None), "created": NOW - age * DAY, "expires": ends}

    answers = [
        answer(1, 400, NOW - 399 * DAY),  # goes, and result 1 with it
        answer(None, 380),  # goes: an old refusal
        answer(2, 370, NOW + 1),  # stays: its lease runs
        answer(2, 364, NOW - DAY),  # stays: young
        answer(None, 1),
    ]

    async def work():
        store = Store(databases.new(kind, tmp_path))
        await schema.upgrade(store)
        await filled(store, rows, answers)
        assert await results.prune(store, NOW, KEPT) == 0  # the control: a grant holds its result
        gone = [await keybroker.prune(store, NOW, 365 * DAY) for _ in range(2)]
        async with store.read() as connection:
            ages = (await connection.execute(sa.select(tables.key_grant.c.created))).scalars()
            kept = sorted(round((NOW - created) / DAY) for created in ages)
        await results.prune(store, NOW, KEPT)
        found = await left(store)
        await store.close()
        return gone, kept, found

    assert asyncio.run(work()) == ([2, 0], [1, 364, 370], [2, 3])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    shape=st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), min_size=1, max_size=20),
    young=st.integers(0, 20),
    slice_=st.integers(1, 7),
)
def test_any_history_keeps_what_it_must_and_nothing_else_that_is_old(tmp_path, shape, young, slice_):
    """The same, said the other way: by a look at the whole history at once."""
    count = len(shape)
    rows = [
        result(at + 1, device, 0 if at >= count - young else 100, proven=proven)
        for at, (device, proven, _) in enumerate(shape)
    ]
    named = [grant(device, at + 1) for at, (device, _, is_named) in enumerate(shape) if is_named]
    newest = {row["device_id"]: row["id"] for row in rows}
    proven = {row["device_id"]: row["id"] for row in rows if row["evidence"]}
    wanted = {*newest.values(), *proven.values(), *(one["result_id"] for one in named)}
    wanted |= {row["id"] for row in rows if row["created"] == NOW}

    async def work():
        path = tmp_path / "history.db"
        store = Store(f"sqlite:///{path}")
        if not path.exists():
            await schema.upgrade(store)
        await filled(store, rows, named)
        await results.prune(store, NOW, KEPT)
        found = await left(store)
        await store.close()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "SLICE", slice_)
        assert asyncio.run(work()) == sorted(wanted)


@pytest.mark.parametrize("kind", databases.KINDS)
def test_one_server_does_it_by_its_setting_and_leaves_the_log(tmp_path, kind):
    async def work():
        home, clock = FleetHome(tmp_path / "fleet"), SystemClock()
        await serve.prepare(home, clock, serve.Options(database=databases.new(kind, tmp_path)))
        assert home.settings().evidence_days == 30
        await serve.prepare(home, clock, serve.Options(evidence_days=7))
        await serve.prepare(home, clock, serve.Options())  # remembered
        fleet = Fleet.open(home, clock)
        age = (NOW - clock.wall()) / DAY  # of a row that is made now
        await filled(fleet.store, [result(1, "d", age + 8), result(2, "d", age + 6), result(3, "d", age)])
        nonces = {"ended": -upkeep.NONCES_KEPT - 60, "open": 60.0}
        async with fleet.store.write() as connection:
            for name, ends in nonces.items():
                row = {"digest": name, "device_id": "d", "purpose": "evidence", "expires": clock.wall() + ends}
                await connection.execute(sa.insert(tables.attest_nonce).values(row))
            await fleet.audit.append(connection, Act("verifier", "device.attest", "d"), clock.wall() - 90 * DAY)
        duties = {task.name: task for task in upkeep.tasks(fleet, None)}
        assert duties["evidence"].alone
        await duties["evidence"].act()
        await duties["prune"].act()
        async with fleet.store.read() as connection:
            log = (await connection.execute(sa.select(tables.audit_event.c.action))).scalars().all()
            open_ones = (await connection.execute(sa.select(tables.attest_nonce.c.digest))).scalars().all()
        found = await left(fleet.store)
        await fleet.store.close()
        return found, "device.attest" in log, open_ones

    assert asyncio.run(work()) == ([2, 3], True, ["open"])


def test_no_days_are_not_a_setting(tmp_path):
    home = FleetHome(tmp_path / "fleet")
    asyncio.run(serve.prepare(home, SystemClock(), serve.Options()))
    home.save_settings(msgspec.structs.replace(home.settings(), evidence_days=0))
    with pytest.raises(OperationError):
        home.settings()
