"""From counts to a report that is paid for: whatever crashes, whatever the fleet answers, never twice, never bare."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from casemate.device.home import Home
from casemate.device.usage import account, choice, diary
from casemate.device.usage.counts import MOST, Counts
from casemate.device.usage.diary import Diary, Lot
from casemate.device.usage.ledger import CAP, WINDOW, rho_of
from casemate.device.usage.reporter import Reporter
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import ipc, usage
from casemate.formats.usage import DAY, EPSILON, QUESTIONS

START = usage.ends(600) + DAY
USED = ipc.Used(requests=3, refused=1, tokens=250, latency=(2, 0, 0, 0, 0))


class Clock:
    """Stands where it was put."""

    def __init__(self, now=START):
        self.now = float(now)

    def wall(self):
        return self.now

    def monotonic(self):
        return self.now


class Bench:
    """An agent, as the reporter sees it, whose fleet answers as it is told."""

    def __init__(self, home, seed=1):
        self.home, self.clock, self.lot = home, Clock(), Lot(random.Random(seed).randrange)
        self.posts, self.events, self.status = [], [], 204
        self.start()

    def start(self, *, setting=True):
        self.reporter = Reporter(self.home, self, self.post, setting=setting, lot=self.lot)

    def record(self, *events):
        self.events += events

    async def post(self, path, body):
        assert path == "usage"
        held = diary.read(self.home)
        assert diary.encode_report(held.pending) == body, "only what is durable, with its charge, may leave"
        assert held.ledger.spends, "and it is paid for"
        self.posts.append(body)
        return ipc.Posted(1, self.status)

    def give(self):
        asyncio.run(self.reporter.give())


@pytest.fixture
def bench(tmp_path):
    return Bench(Home(tmp_path).create())


def at_the_end_of_a_period(bench):
    bench.reporter.count(USED)
    bench.clock.now = usage.ends(usage.period_of(START)) + diary.SPREAD
    return bench


def test_a_period_becomes_one_report_that_is_sent_until_the_fleet_answers(bench):
    at_the_end_of_a_period(bench).status = 503
    for _ in range(3):
        bench.give()
        bench.start()  # the agent died
    bench.status = 409  # it was taken before: only the answer was lost
    bench.give()
    bench.give()
    assert len(bench.posts) == 4
    assert len(set(bench.posts)) == 1
    kept = diary.read(bench.home)
    assert (kept.pending, kept.closed, kept.last.outcome) == (None, None, "taken")
    assert len(kept.ledger.spends) == 1
    assert [each["metadata"]["event_code"] for each in bench.events] == ["usage_reported"]


def test_without_the_owners_yes_nothing_is_kept_and_nothing_leaves(bench):
    bench.start(setting=False)
    at_the_end_of_a_period(bench).give()
    bench.reporter.save()
    assert not diary.path_of(bench.home).exists()
    assert bench.posts == []


def test_the_owners_no_forgets_what_was_counted_and_what_was_to_be_sent_and_keeps_the_cost(bench):
    at_the_end_of_a_period(bench).status = 503
    bench.give()
    bench.reporter.count(USED)
    choice.choose(bench.home, False, bench.clock.now)
    bench.status = 204
    bench.give()
    kept = diary.read(bench.home)
    assert (kept.pending, kept.closed, kept.counts) == (None, None, Counts())
    assert len(kept.ledger.spends) == len(bench.posts) == 1


def test_a_yes_was_for_one_fleet_and_the_cost_is_for_all(bench):
    choice.choose(bench.home, True, bench.clock.now)
    bench.start(setting=False)
    at_the_end_of_a_period(bench).status = 503
    bench.give()
    choice.withdraw(bench.home)
    diary.leave(bench.home, bench.clock.now)
    bench.status = 204
    bench.start(setting=False)
    bench.give()
    bench.start(setting=True)
    bench.give()
    kept = diary.read(bench.home)
    assert (len(bench.posts), kept.pending, kept.closed, kept.counts) == (1, None, None, Counts())
    assert len(kept.ledger.spends) == 1


def test_what_came_before_a_yes_is_not_counted(bench):
    bench.start(setting=False)
    bench.reporter.count(USED)
    choice.choose(bench.home, True, bench.clock.now)
    bench.reporter.count(USED)  # the gateway's sums reach back before the yes
    bench.reporter.count(USED)
    bench.reporter.save()
    assert diary.read(bench.home).counts.requests == 3


def test_a_choice_that_cannot_be_read_is_a_no(bench):
    assert bench.reporter.on
    choice.path_of(bench.home).write_bytes(b'{"schema":1,"on":"yes"}')
    assert not bench.reporter.on


def test_a_damaged_diary_reports_nothing_and_its_budget_is_spent(bench):
    diary.path_of(bench.home).write_bytes(b"{}")
    at_the_end_of_a_period(bench).give()
    assert bench.posts == []
    shown = account.of(bench.home, bench.clock.now, setting=True)
    assert "damaged" in shown["fault"]
    assert shown["budget"]["left"] == 0.0
    assert diary.path_of(bench.home).read_bytes() == b"{}"


def test_a_disk_that_is_full_sends_nothing(bench, monkeypatch):
    at_the_end_of_a_period(bench)

    def full(*_):
        raise OperationError("no space left")

    monkeypatch.setattr(diary, "write", full)
    bench.give()
    assert (bench.posts, bench.reporter.fault) == ([], "no space left")
    monkeypatch.undo()
    bench.give()
    assert len(bench.posts) == 1


def test_a_second_report_waits_for_its_budget_and_goes_when_thirty_days_have_passed(bench):
    at_the_end_of_a_period(bench).give()
    first = bench.clock.now
    bench.reporter.count(USED)
    bench.clock.now = usage.ends(usage.period_of(START) + 1)
    bench.lot = Lot(lambda _: 0)
    bench.start()
    bench.give()
    assert len(bench.posts) == 1, "one of rho 0.5 is all that 0.6 holds"
    assert "budget" in account.of(bench.home, bench.clock.now, setting=True)["waits"]
    bench.clock.now = first + WINDOW
    bench.give()
    assert [msgspec.json.decode(each)["period"] for each in bench.posts] == [601, 602]


def test_a_device_that_was_off_too_long_says_nothing_about_what_the_fleet_would_not_take(bench):
    bench.reporter.count(USED)
    bench.reporter.save()
    bench.clock.now += 3 * usage.PERIOD
    bench.give()
    assert bench.posts == []
    assert diary.read(bench.home).ledger.spends == ()


def test_what_the_owner_sees_is_what_was_sent(bench):
    at_the_end_of_a_period(bench).give()
    shown = account.of(bench.home, bench.clock.now, setting=True)
    assert shown["last"]["report"].encode() == bench.posts[0]
    assert (shown["budget"]["left"], shown["budget"]["spends"][0]["rho"]) == (0.1, 0.5)


class PowerCutError(BaseException):
    """Nothing catches it, as nothing does a power cut."""


class AnyOrderOfCrashes(RuleBasedStateMachine):
    """Power cuts before and after every write, answers that are lost, clocks that jump: one report for one period."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        Path(self.directory.name).chmod(0o755)
        self.bench = Bench(Home(Path(self.directory.name)).create(), seed=5)
        self.cut = None
        self.write = diary.write
        diary.write = self._write
        self.charged = []

    def teardown(self):
        diary.write = self.write
        self.directory.cleanup()

    def _write(self, home, kept):
        if self.cut == "before":
            raise PowerCutError
        known = diary.read(home)
        before = len(known.ledger.spends) if known else 0
        self.write(home, kept)
        if kept.ledger.spends and (before != len(kept.ledger.spends) or known.ledger != kept.ledger):
            self.charged.append(kept.ledger.spends[-1].time)
        if self.cut == "after":
            raise PowerCutError

    def _with_a_cut(self, cut, act):
        self.cut = cut
        try:
            act()
        except PowerCutError:
            self.bench.start()
        finally:
            self.cut = None

    @rule(days=st.integers(-20, 45))
    def time_passes(self, days):
        self.bench.clock.now = max(0.0, self.bench.clock.now + days * DAY)

    @rule(cut=st.sampled_from([None, "before", "after"]))
    def something_is_counted(self, cut):
        self._with_a_cut(cut, lambda: self.bench.reporter.count(USED))

    @rule(cut=st.sampled_from([None, "before", "after"]), status=st.sampled_from([0, 204, 400, 404, 409, 503]))
    def a_contact(self, cut, status):
        self.bench.status = status
        self._with_a_cut(cut, self.bench.give)

    @rule()
    def the_device_restarts(self):
        self.bench.reporter.save()
        self.bench.start()

    @invariant()
    def every_period_is_told_once_and_paid_for(self):
        told = {}
        for body in self.bench.posts:
            told.setdefault(msgspec.json.decode(body)["period"], set()).add(body)
        assert all(len(bodies) == 1 for bodies in told.values())
        assert len(self.charged) >= len(told)

    @invariant()
    def no_thirty_days_cost_more_than_the_cap(self):
        for end in self.charged:
            inside = [one for one in self.charged if end - WINDOW < one <= end]
            assert rho_of(EPSILON) * len(inside) <= CAP


TestAnyOrderOfCrashes = AnyOrderOfCrashes.TestCase
TestAnyOrderOfCrashes.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


# --- counts and answers -----------------------------------------------------------------------------------------------

number = st.integers(0, 1 << 31)


@given(st.builds(ipc.Used, number, number, number, st.lists(number, max_size=8).map(tuple)))
def test_any_counts_have_an_answer_to_every_question(used):
    counts = Counts(requests=MOST).plus(used)
    for question, before in itertools.product(QUESTIONS.values(), (Counts(), Counts().plus(used), counts)):
        assert 0 <= before.true_answer(question) < len(question.answers)
    assert msgspec.json.decode(msgspec.json.encode(counts), type=Counts) == counts


@pytest.mark.parametrize(
    ("question", "counts", "said"),
    [
        ("in_use", Counts(), "no"),
        ("in_use", Counts(requests=1), "yes"),
        ("requests", Counts(requests=10), "1-10"),
        ("requests", Counts(requests=1001), "more"),
        ("tokens", Counts(tokens=1001), "up to 10 k"),
        ("latency", Counts(), "no answers"),
        ("latency", Counts(latency=(1, 0, 0, 0, 0)), "1 s"),
        ("latency", Counts(latency=(1, 1, 1, 0, 0)), "3 s"),
        ("latency", Counts(latency=(0, 0, 0, 0, 9)), "longer"),
        ("refused", Counts(), "no requests"),
        ("refused", Counts(requests=9), "none"),
        ("refused", Counts(requests=100_000, refused=1), "up to 1 %"),
        ("refused", Counts(requests=100, refused=2), "up to 5 %"),
        ("refused", Counts(requests=3, refused=3), "more"),
    ],
)
def test_the_true_answer(question, counts, said):
    row = QUESTIONS[question]
    assert row.answers[counts.true_answer(row)] == said


def test_every_question_has_as_many_answers_as_its_edges_make():
    assert all(len(row.answers) == len(row.edges) + 1 for row in QUESTIONS.values())


@given(st.binary(max_size=200))
def test_a_diary_is_read_or_refused(raw):
    try:
        found = diary.parse(raw)
    except UntrustedDataError as error:
        assert error.check == "usage-diary"
    else:
        assert isinstance(found, Diary)


@pytest.mark.parametrize("rho", [-1, 0, 0.7, math.inf])
def test_a_diary_with_an_impossible_cost_is_refused(rho):
    raw = b'{"schema":1,"period":1,"ledger":{"spends":[[1,"a",%s]]}}' % str(rho).encode()
    with pytest.raises(UntrustedDataError):
        diary.parse(raw)
