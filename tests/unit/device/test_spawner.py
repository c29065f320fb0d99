"""What root does for an agent: start roles of a fixed list under their own uids, and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading

import pytest

from casemate.device import channel, spawner
from casemate.device.channel import Channel
from casemate.errors import HostError
from casemate.formats import ipc

pytestmark = pytest.mark.root


@pytest.fixture
def asking():
    """A spawner in a thread of its own, with this process's stand-in for an agent."""
    ours, theirs = channel.pair()
    agent = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
    root = spawner._Spawner(agent.pid, theirs, {})
    stopped = threading.Event()

    def serve():
        while not stopped.is_set():
            for key, _ in root._events.select(0.05):
                key.data()

    root._events.register(root._channel, 1, root._on_request)
    thread = threading.Thread(target=serve)
    thread.start()
    yield Channel(ours, ipc.FromSpawner), root
    stopped.set()
    thread.join()
    root._end_all()
    agent.kill()
    agent.wait()
    ours.close()
    root._channel.close()
    root._events.close()


@pytest.mark.parametrize(("role", "links"), [("agent", 1), ("sh", 1), ("../vault", 1), ("engine", 1), ("vault", 2)])
def test_other_roles_and_other_links_are_refused(asking, role, links):
    agent, _ = asking
    with open("/dev/null", "rb") as null:
        agent.send(ipc.Spawn(id=1, role=role, links=links), [null.fileno()] * links)
    answer, _ = agent.recv(10)
    assert (answer.id, answer.pid) == (1, 0)
    assert role in answer.why


def test_a_role_gets_its_own_uid_and_its_end_is_told(asking):
    agent, _ = asking
    ours, theirs = channel.pair()
    agent.send(ipc.Spawn(id=7, role="journal", links=1), [theirs.fileno()])
    theirs.close()
    answer, _ = agent.recv(10)
    assert answer.pid
    link = Channel(ours, ipc.ChildToAgent)
    hello, _ = link.recv(20)
    assert hello.role == "journal"
    link.send(ipc.Start(home="/nowhere", settings={"origin_id": "x", "owner_public": ""}))
    fatal, _ = link.recv(20)  # it dropped root before it looked for its home
    assert isinstance(fatal, ipc.Fatal)
    ended, _ = agent.recv(20)
    assert (ended.pid, ended.reason) == (answer.pid, f"exited with {fatal.exit_code}")
    link.close()


def test_only_its_own_processes_can_be_killed(asking):
    agent, root = asking
    victim = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
    agent.send(ipc.Kill(pid=victim.pid))
    agent.send(ipc.Kill(pid=1))
    agent.send(ipc.Spawn(id=1, role="nobody", links=0))
    agent.recv(10)
    assert victim.poll() is None
    victim.kill()
    victim.wait()
    assert not root._processes


def test_the_agents_side_reports_refusals_and_a_vanished_spawner():
    async def scenario():
        ours, theirs = channel.pair()
        launchers = spawner.SpawnerLaunchers(ours)
        root = channel.AsyncChannel(theirs, ipc.ToSpawner)
        starting = asyncio.ensure_future(launchers.core("vault")([]))
        request, (fd,) = await root.recv()
        os.close(fd)
        root.post(ipc.Spawned(id=request.id, pid=0, why="no uid"))
        with pytest.raises(HostError, match="no uid"):
            await starting
        starting = asyncio.ensure_future(launchers.core("vault")([]))
        _, (fd,) = await root.recv()
        os.close(fd)
        root.close()
        with pytest.raises(Exception, match="is gone"):
            await starting
        launchers._channel.close()

    asyncio.run(scenario())


def test_what_was_asked_for_by_somebody_who_is_gone_is_ended_and_the_next_is_served():
    """Cancelled between the question and its answer: the process is nobody's, and the answer no error."""

    async def work():
        ours, theirs = channel.pair()
        launchers, root = spawner.SpawnerLaunchers(ours), channel.AsyncChannel(theirs, ipc.ToSpawner)
        first = asyncio.create_task(launchers.core("vault")(()))
        asked, fds = await root.recv()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await root.send(ipc.Spawned(id=asked.id, pid=4711))
        killed, _ = await root.recv()
        second = asyncio.create_task(launchers.core("journal")(()))
        again, more = await root.recv()
        await root.send(ipc.Spawned(id=again.id, pid=4712))
        process, link = await second
        link.close()
        for fd in (*fds, *more):
            os.close(fd)
        root.close()
        await launchers._reader
        ours.close()
        return killed, process.pid

    assert asyncio.run(work()) == (ipc.Kill(pid=4711), 4712)
