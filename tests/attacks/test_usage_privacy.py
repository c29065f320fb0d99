"""A fleet's server that is curious: it wants to know what one device was used for, from the reports it is sent.

Each attack is run on the device's own path from counts to bytes, and again with its defence off.
"""

from __future__ import annotations

import asyncio
import math
import random

import msgspec

from casemate.device.home import Home
from casemate.device.usage import diary
from casemate.device.usage.counts import Counts
from casemate.device.usage.diary import Closed, Diary, Lot
from casemate.device.usage.reporter import Reporter
from casemate.formats import ipc, usage
from casemate.formats.usage import EPSILON, QUESTIONS, VerifiedReport

PERIOD = 600
NOW = usage.ends(PERIOD) + diary.SPREAD
IDLE = Counts()
BUSY = Counts(requests=5000, refused=900, tokens=10**7, latency=(0, 0, 0, 0, 5000))


def report_of(counts, below):
    """Return what a device with *counts* says, the whole way it is made."""
    turned = diary.turn(Diary(1, PERIOD + 1, closed=Closed(PERIOD, counts, 0)), NOW, Lot(below))
    return turned.pending


def likelihood(report, counts):
    """Return how likely *report* is for *counts*: the attacker knows the mechanism, the code and the thresholds."""
    question = QUESTIONS[report.question]
    p, q = question.chances
    true = counts.true_answer(question)
    if question.yes_or_no:
        return p if report.answer == true else q
    bits = VerifiedReport(PERIOD, question, report.answer).bits
    return math.prod((p if i == true else q) if bit else 1 - (p if i == true else q) for i, bit in enumerate(bits))


def success(below, tries=4000):
    """Return how often the best guess ("busy or idle?") is right; the two are as likely beforehand."""
    coin = random.Random(9)
    right = 0.0
    for _ in range(tries):
        busy = coin.random() < 0.5
        seen = report_of(BUSY if busy else IDLE, below)
        odds = likelihood(seen, BUSY) / likelihood(seen, IDLE)
        right += 0.5 if odds == 1 else (odds > 1) == busy
    return right / tries


def test_the_best_guess_about_a_device_is_no_better_than_epsilon_allows():
    bound = math.exp(EPSILON) / (1 + math.exp(EPSILON))
    noise = random.Random(3).randrange
    assert success(noise) <= bound + 4 * math.sqrt(bound * (1 - bound) / 4000)

    def truthful(_):  # control: the same path with coins that always fall on the truth
        return 0

    assert report_of(BUSY, truthful).question == "in_use"
    assert [report_of(counts, truthful).answer for counts in (IDLE, BUSY)] == [0, 1], "each is known for what it did"


class Agent:
    """What the reporter needs of an agent; the server does not say that it has a report, unless told to."""

    def __init__(self, home, seed):
        self.now, self.got, self.home, self.lot = float(NOW), [], home, Lot(random.Random(seed).randrange)
        self.answer = 503
        self.clock = self

    def wall(self):
        return self.now

    monotonic = wall

    def record(self, *_):
        pass

    async def post(self, _path, body):
        self.got.append(body)
        return ipc.Posted(1, self.answer)

    def contact(self):
        asyncio.run(Reporter(self.home, self, self.post, setting=True, lot=self.lot).give())


def test_asking_again_and_again_averages_nothing_out(tmp_path):
    home = Home(tmp_path).create()
    diary.write(home, Diary(1, PERIOD + 1, closed=Closed(PERIOD, BUSY, 0)))
    agent = Agent(home, 5)
    for _ in range(50):  # each time the device was restarted, too
        agent.contact()
    assert len(agent.got) == 50
    assert len(set(agent.got)) == 1
    # control: with fresh noise for every try the truth stands out of the average
    below = random.Random(6).randrange
    fresh = [each.answer for each in (report_of(BUSY, below) for _ in range(1500)) if each.question == "in_use"]
    p, q = QUESTIONS["in_use"].chances
    assert abs((sum(fresh) / len(fresh) - q) / (p - q) - 1) < 0.35


def test_a_clock_that_is_moved_to_and_fro_is_told_once_about_a_month(tmp_path):
    """Whoever serves the time ends the same month twenty times, to have its answer twenty times."""

    def told(agent, *, forgets=False):
        agent.answer = 204
        for _ in range(20):
            if forgets:
                diary.write(agent.home, Diary(1, PERIOD, counts=BUSY))
            for days in (0, 40, 20, 41):
                agent.now = usage.ends(PERIOD) - usage.DAY + days * usage.DAY
                agent.contact()
        return len([body for body in agent.got if msgspec.json.decode(body)["period"] == PERIOD])

    home = Home(tmp_path / "home").create()
    diary.write(home, Diary(1, PERIOD, counts=BUSY))
    agent = Agent(home, 7)
    assert told(agent) == 1
    assert len(agent.got) <= 2, "and perhaps once about the month that the clock went into"
    assert told(Agent(Home(tmp_path / "other").create(), 7), forgets=True) == 20  # control: without a memory
