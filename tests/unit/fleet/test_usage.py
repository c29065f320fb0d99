"""What reports add up to: estimates without bias, intervals that hold, sums that say nothing about one device."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import uuid

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.usage import randomize
from casemate.errors import NotFoundError, UntrustedDataError
from casemate.fleet.store import Store, schema, usage_tables
from casemate.fleet.usage import estimate, reports
from casemate.fleet.usage.reports import Wanted
from casemate.formats import usage
from casemate.formats.usage import EPSILON, QUESTIONS, Coin, Report, VerifiedReport
from support import databases

NOW = usage.ends(600) + 86400.0
IN_USE, LATENCY = QUESTIONS["in_use"], QUESTIONS["latency"]


def tell(question, truths, seed):
    """Have one device report each of *truths*; return the sums."""
    below = random.Random(seed).randrange
    sums = [0] * len(question.answers)
    for truth in truths:
        bits = VerifiedReport(600, question, randomize.answer(question, truth, below)).bits
        sums = [old + bit for old, bit in zip(sums, bits, strict=True)]
    return sums


def test_ten_thousand_devices_are_counted_right_to_a_percent_of_them():
    n, truth = 10_000, 3_000
    errors = []
    for seed in range(12):
        ones = tell(IN_USE, (device < truth for device in range(n)), seed)
        errors.append(estimate.shares(IN_USE, n, ones)[1].estimate - truth / n)
    assert statistics.pstdev(errors, 0.0) <= 0.0145, "theory: 0.96 %; a half more is five sigma of twelve tries"
    assert abs(statistics.mean(errors)) <= 0.011


@pytest.mark.parametrize("question", [IN_USE, LATENCY], ids=["warner", "oue"])
def test_the_stated_interval_holds_the_truth_as_often_as_it_says(question):
    n, width = 300, len(question.answers)
    draw = random.Random(5)
    truths = [draw.randrange(width) for _ in range(n)]
    held = tries = 0
    for seed in range(60):
        for index, share in enumerate(estimate.shares(question, n, tell(question, truths, seed))):
            tries += 1
            held += share.low - 1e-9 <= truths.count(index) / n <= share.high + 1e-9
    assert held / tries >= 0.92


def test_opendp_agrees_about_cost_and_noise():
    import opendp.prelude as dp  # noqa: PLC0415 - a second, for this test alone

    dp.enable_features("contrib")
    coin = Coin.of(EPSILON)
    theirs = dp.m.make_randomized_response_bool(prob=coin.truth)
    assert theirs.map(1) == pytest.approx(coin.epsilon, abs=1e-9)
    assert theirs.map(1) <= EPSILON
    n = 4000
    ones = sum(theirs(False) for _ in range(n))
    p, q = IN_USE.chances
    deviation = math.sqrt(n * q * (1 - q))
    assert abs(ones - n * q) < 5 * deviation, "their noise is what our server takes out"
    ours = estimate.shares(IN_USE, n, [n - ones, ones])[1]
    assert ours.standard_error == pytest.approx(deviation / n / (p - q), rel=0.1)
    # a histogram: two truths differ in two bits, each of which is a coin of its own
    one_bit = dp.m.make_randomized_response_bool(prob=1 - LATENCY.chances[1])
    assert one_bit.map(1) <= EPSILON + 1e-9


@given(st.sampled_from(list(QUESTIONS.values())), st.integers(1, 5000), st.data())
def test_one_device_moves_no_share_by_more_than_is_stated(question, n, data):
    honest = data.draw(st.integers(0, question.reports - 1))
    hostile = data.draw(st.integers(0, question.reports - 1))
    others = [data.draw(st.integers(0, n - 1)) for _ in question.answers]
    if question.yes_or_no:
        others[0] = n - 1 - others[1]
    shares = [
        estimate.shares(
            question, n, [old + bit for old, bit in zip(others, VerifiedReport(1, question, said).bits, strict=True)]
        )
        for said in (honest, hostile)
    ]
    moved = max(abs(a.estimate - b.estimate) for a, b in zip(*shares, strict=True))
    assert moved <= estimate.sway(question, n) * (1 + 1e-9)


@given(st.integers(-5, 300), st.lists(st.integers(-5, 300), max_size=7))
def test_sums_are_estimated_or_refused(n, ones):
    for question in QUESTIONS.values():
        try:
            found = estimate.shares(question, n, ones)
        except ValueError:
            continue
        assert all(0 <= share.low <= 1 or share.low > share.high for share in found)
        assert all(math.isfinite(share.estimate) and share.standard_error > 0 for share in found)


@pytest.mark.parametrize(
    ("report", "check"),
    [
        (Report(1, 600, "salary", 0), "usage-question"),
        (Report(1, 600, "in_use", 2), "usage-domain"),
        (Report(1, 600, "latency", 64), "usage-domain"),
        (Report(1, 599, "in_use", 1), "usage-period"),
        (Report(1, 601, "in_use", 1), "usage-period"),
    ],
)
def test_a_report_that_no_honest_device_makes_is_refused_by_name(report, check):
    with pytest.raises(UntrustedDataError) as refused:
        usage.verify_report(report, NOW)
    assert refused.value.check == check


def test_a_clock_may_be_a_day_ahead_and_a_period_is_reported_until_the_next_is_over():
    assert not usage.may_be_reported(600, usage.ends(600) - usage.EARLY - 1)
    assert usage.may_be_reported(600, usage.ends(600) - usage.EARLY)
    assert usage.may_be_reported(600, usage.ends(601) - 1)
    assert not usage.may_be_reported(600, usage.ends(601))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"version":2,"period":600,"question":"in_use","answer":1}',
        b'{"version":1,"period":600,"question":"in_use","answer":1,"device":"me"}',
        b'{"version":1,"period":600,"question":"in_use","answer":-1}',
        b'{"version":1,"period":600,"question":"in_use","answer":1.5}',
        b'{"version":1,"period":600,"question":"in_use","answer":true}',
        b"[" * 9000,
    ],
)
def test_what_is_no_report_is_refused(body):
    with pytest.raises(UntrustedDataError):
        usage.parse(body)


# --- the database -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", databases.KINDS)
def test_sums_are_kept_and_nothing_of_one_device(kind, tmp_path):
    """Many at once, doubles among them; then what the API says, and what is left in the tables."""
    store = Store(databases.new(kind, tmp_path))
    draw = random.Random(2)
    devices = [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(120)]

    async def one(device, number, period=600):
        question = LATENCY if number % 2 else IN_USE
        verified = VerifiedReport(period, question, randomize.answer(question, number % 2, draw.randrange))
        group = "north" if number < 110 else "south"
        async with store.write() as connection:
            return await reports.take(store, connection, device, group, verified)

    async def work():
        try:
            await schema.upgrade(store)
            async with store.read() as connection:
                assert (await reports.summary(connection, Wanted(), NOW))["period"] is None
            wanted = [one(device, number) for number, device in enumerate(devices)]
            doubles = [one(device, number + 1) for number, device in enumerate(devices[:30])]
            taken = await asyncio.gather(*wanted, *doubles)
            await one(devices[0], 0, period=599)
            await one(devices[0], 0, period=601)  # a clock that is ahead
            async with store.read() as connection:
                whole = await reports.summary(connection, Wanted(), NOW)
                south = await reports.summary(connection, Wanted(600, "south"), NOW)
                for missing in (Wanted(7), Wanted(600, "east")):
                    with pytest.raises(NotFoundError):
                        await reports.summary(connection, missing, NOW)
                rows = (await connection.execute(sa.select(usage_tables.usage_sum))).mappings().all()
                columns = set(usage_tables.usage_reporter.c.keys())
            async with store.write() as connection:
                await reports.prune(connection, NOW + 3 * usage.PERIOD)
                left = await connection.scalar(sa.select(sa.func.count()).select_from(usage_tables.usage_reporter))
            return taken, whole, south, rows, columns, left
        finally:
            await store.close()

    taken, whole, south, rows, columns, left = asyncio.run(work())
    assert sum(taken) == len(devices), "each device once, whichever of its two reports came first"
    assert (whole["period"], whole["complete"], whole["devices"]) == (600, False, 120)
    assert (whole["periods"], whole["groups"]) == ([601, 600, 599], ["north", "south"])
    shown = {each["question"]: each for each in whole["questions"]}
    assert shown["in_use"]["shown"]
    assert not shown["tokens"]["shown"]
    assert (shown["tokens"]["reports"], shown["tokens"]["answers"]) == (None, [])
    assert all(not each["shown"] for each in south["questions"]), "ten devices are noise"
    assert all(0 <= row["ones"] <= row["reports"] for row in rows)
    assert columns == {"tenant_id", "period", "device_id"}, "who, and never what"
    assert left == 0
