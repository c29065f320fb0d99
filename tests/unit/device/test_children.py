"""Starting a child: one that lies, stays silent or goes away is ended, and the supervisor hears `ChildDied`."""

from __future__ import annotations

import asyncio

import pytest

from casemate.device import channel, children
from casemate.device.children import ChildDied, start_child
from casemate.formats import ipc


class Process:
    """A program that only notes that it was ended."""

    def __init__(self):
        self.pid, self.killed = 1, False

    def watch(self, ended):
        del ended

    def kill(self):
        self.killed = True


def start(answer):
    """Start a child whose end of the link *answer* gets; return how that ended, and the process."""

    async def scenario():
        ours, theirs = channel.pair()
        process = Process()

        async def launch(_inherited):
            answer(theirs)
            return process, ours

        try:
            child = await start_child("vault", launch, home="/", settings={}, fds={})
            child.link.close()
        except ChildDied as died:
            return died.reason, process.killed, ours.fileno()
        finally:
            theirs.close()
        return "", process.killed, None

    return asyncio.run(scenario())


def hello(role):
    return ipc.encode(ipc.Hello(role=role, pid=1))


def greet_and_go(link):
    link.sendall(hello("vault"))
    link.close()


def test_an_honest_child_is_started():
    assert start(lambda link: link.sendall(hello("vault"))) == ("", False, None)


@pytest.mark.parametrize(
    "answer",
    [lambda link: link.sendall(hello("engine")), greet_and_go, lambda link: link.close(), lambda link: None],
    ids=["another role", "greets and goes", "goes", "silent"],
)
def test_any_other_is_ended_and_its_link_closed(answer, monkeypatch):
    monkeypatch.setattr(children, "HELLO_TIMEOUT", 0.2)
    reason, killed, link = start(answer)
    assert reason
    assert (killed, link) == (True, -1)
