"""When a directed device acts on a pick, and that it rests when there is nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace

import pytest

from casemate.crypto.signing import SigningKey
from casemate.device.directed import Follower
from casemate.device.fleet.membership import Member
from casemate.device.home import Home
from casemate.formats import director, ipc
from casemate.formats.director import Choice, Pick

FLEET, DEVICE = "ab" * 16, "00000000-0000-4000-8000-00000000000a"
KEY, NOW = SigningKey.generate(), int(time.time())
MEMBER = Member(1, FLEET, DEVICE, "https://fleet", KEY.public, "witness", NOW, KEY.public, directed=True)
CHOICE = Choice("stable", 1, "a" * 64, "b" * 64, 100)
TURNS = 200


class Watched(Follower):
    """Counts how often it looks, and what it carried out."""

    def __init__(self, home, running=""):
        agent = SimpleNamespace(clock=SimpleNamespace(wall=lambda: float(NOW)), tell_link=print, record=print)
        super().__init__(agent, home, MEMBER, running=running, earliest=float(NOW))
        self.looks, self.taken, self.ready = 0, [], True

    def may(self):
        return self.ready

    def hand(self, sequence, action="take", choice=CHOICE):
        pick = Pick(1, FLEET, DEVICE, sequence, action, NOW, NOW + 3600, choice)
        self.picked(ipc.Picked(director.sign_pick(pick, KEY), float(NOW)), float(NOW))

    async def take(self):
        self.taken.append(self.direction.pick.sequence)

    def _unfinished(self):
        self.looks += 1
        return super()._unfinished()


@contextlib.asynccontextmanager
async def attending(one):
    task = asyncio.create_task(one.attend(one.take, one.may))
    await turns()
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def turns():
    for _ in range(TURNS):
        await asyncio.sleep(0)


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    made.create()
    return made


@pytest.mark.parametrize(
    ("ready", "running", "action", "choice"),
    [
        (True, CHOICE.content, "take", CHOICE),
        (True, "", "keep", None),
        (True, "", "back", CHOICE),
        (False, "", "take", CHOICE),
    ],
    ids=["it runs already", "nothing to take", "nothing to leave", "it may not serve yet"],
)
def test_news_that_ask_for_nothing_now_are_looked_at_and_the_device_rests(home, ready, running, action, choice):
    async def work():
        one = Watched(home, running)
        one.ready = ready
        async with attending(one):
            one.hand(1, action, choice)
            before = one.looks
            await turns()
            return one.taken, one.looks - before

    taken, looks = asyncio.run(work())
    assert taken == []
    assert 1 <= looks <= 2


def test_each_new_pick_is_carried_out_at_once_and_the_same_one_is_no_news(home):
    async def work():
        one = Watched(home)
        async with attending(one):
            for sequence in (1, 2, 2, 3):
                one.hand(sequence)
                await turns()
        return one.taken

    assert asyncio.run(work()) == [1, 2, 3]


def test_what_comes_while_a_pick_is_carried_out_is_not_missed(home):
    async def work():
        one, carried_out = Watched(home), asyncio.Event()
        at_once = one.take

        async def slowly():
            await at_once()
            await carried_out.wait()

        one.take = slowly
        async with attending(one):
            one.hand(1)
            await turns()
            one.hand(2)
            carried_out.set()
            await turns()
        return one.taken

    assert asyncio.run(work()) == [1, 2]
