"""Pace: what may pass in a time, in a day and at what hours, and how retries and polls are spread."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from casemate import config
from casemate.device.update import pace
from casemate.device.update.pace import Bucket, Spent
from casemate.errors import ConfigError

SIZES = st.lists(st.tuples(st.integers(1, 200_000), st.floats(0, 3)), min_size=1, max_size=60)
MINUTES = st.integers(0, 1439)


@given(st.integers(1, 10_000_000), SIZES)
def test_in_any_time_no_more_passes_than_the_burst_and_the_rate(rate, taken):
    """Every piece is taken after the wait that the one before asked for, and after some idling."""
    bucket, now, passed = Bucket.full(rate, 0.0), 0.0, []
    for size, idle in taken:
        bucket, wait = bucket.take(size, now)
        passed.append((now, size))
        now += wait + idle
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            sent = sum(size for _, size in passed[first:last])  # the last one goes into debt, and waits after it
            span = passed[last][0] - passed[first][0]
            assert sent <= bucket.burst + rate * span + 1e-3 * rate + 1


@given(st.integers(1, 10_000_000), SIZES)
def test_nobody_waits_longer_than_the_rate_asks_for(rate, taken):
    bucket, now, total = Bucket.full(rate, 0.0), 0.0, 0
    for size, _ in taken:
        bucket, wait = bucket.take(size, now)
        now, total = now + wait, total + size
    assert now <= total / rate + 1e-6 * len(taken) * (1 + now)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_clock_that_goes_back_gives_nothing(first, second):
    bucket, _ = Bucket.full(1000, first).take(64 * 1024, first)
    again, wait = bucket.take(1, min(first, second))
    assert again.level == bucket.level - 1
    assert wait > 0 or bucket.level >= 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1000)), max_size=30), st.integers(1, 5000))
def test_a_day_never_has_more_than_its_budget(spending, limit):
    """Whoever asks first spends only what is left; days may come in any order."""
    spent, by_day = Spent(), {}
    for day, size in spending:
        if pace.left(spent, limit, day) >= size:
            spent = spent.on(day).plus(size)
            by_day[spent.day] = by_day.get(spent.day, 0) + size
    assert all(total <= limit for total in by_day.values())


def test_a_day_that_comes_back_has_no_new_budget():
    spent = Spent(10, 900)
    assert pace.left(spent, 1000, 9) == 100
    assert pace.left(spent, 1000, 11) == 1000


@pytest.mark.parametrize(
    ("text", "minute", "wait"),
    [
        ("", 700, 0),
        ("22:00-06:00", 22 * 60, 0),
        ("22:00-06:00", 5 * 60 + 59, 0),
        ("22:00-06:00", 6 * 60, 16 * 60),
        ("22:00-06:00", 21 * 60 + 59, 1),
        ("01:00-02:00, 13:00-14:00", 3 * 60, 10 * 60),
        ("20:00-24:00", 23 * 60 + 59, 0),
        ("20:00-00:00", 23 * 60 + 59, 0),
        ("20:00-24:00", 0, 20 * 60),
    ],
)
def test_the_hours_that_are_allowed(text, minute, wait):
    assert pace.minutes_until_open(config.parse_hours(text), minute) == wait


@given(st.lists(st.tuples(MINUTES, MINUTES).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=4), MINUTES)
def test_after_the_wait_it_is_open_and_not_a_minute_earlier(spans, minute):
    text = ",".join(f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in spans)
    hours = config.parse_hours(text)
    wait = pace.minutes_until_open(hours, minute)
    assert pace.minutes_until_open(hours, (minute + wait) % 1440) == 0
    assert all(pace.minutes_until_open(hours, (minute + step) % 1440) for step in range(wait))
    inside = any((a <= minute < b) if a < b else (minute >= a or minute < b) for a, b in spans)
    assert inside == (wait == 0)


@pytest.mark.parametrize(
    "text", ["22-6", "25:00-26:00", "22:00", "22:00-22:00", "24:00-01:00", "22:00-24:30", "x", "1:00-2:00"]
)
def test_hours_have_one_form(text):
    with pytest.raises(ValueError, match="22:00-06:00"):
        config.parse_hours(text)
    with pytest.raises(ConfigError):
        config.load({"update.hours": text}, {"CASEMATE_CONFIG": "/none"})


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_retries_are_spread_over_all_of_a_bounded_time(attempt, draw):
    wait = pace.backoff(attempt, draw)
    assert 0 <= wait <= min(pace.BACKOFF_CAP, 2.0 ** min(attempt, 16))
    assert pace.backoff(attempt, 0.0) == 0.0


@pytest.mark.parametrize(("value", "good"), [(0, True), (7, False), (8, True), ("9", True), (-1, False), (True, False)])
def test_a_daily_budget_has_room_for_a_chunk_or_is_none(value, good):
    if good:
        assert config.load({"update.daily": value}, {"CASEMATE_CONFIG": "/none"})["update.daily"] == int(value)
    else:
        with pytest.raises(ConfigError):
            config.load({"update.daily": value}, {"CASEMATE_CONFIG": "/none"})


@pytest.mark.parametrize(("value", "found"), [(True, True), ("true", True), ("false", False), ("yes", None), (1, None)])
def test_a_switch_is_true_or_false(value, found):
    if found is None:
        with pytest.raises(ConfigError):
            config.load({"update.allow_http": value}, {"CASEMATE_CONFIG": "/none"})
    else:
        assert config.load({"update.allow_http": value}, {"CASEMATE_CONFIG": "/none"})["update.allow_http"] is found
