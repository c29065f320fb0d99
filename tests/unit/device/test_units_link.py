"""Processes that join over the link socket: who is heard, what they get, how they are held."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from casemate.device import attach, units_link
from casemate.device.attach import LEASH
from casemate.device.channel import Channel
from casemate.device.children import ChildDied
from casemate.device.units_link import LinkServer, UnitLaunchers
from casemate.errors import OperationError
from casemate.formats import ipc

ME = os.getuid()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "link").mkdir()
    return tmp_path / attach.LINK_SOCKET


class Peer:
    """A process that offers itself, driven by hand."""

    def __init__(self, path, *messages, raw=b""):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(path))
        self.channel = Channel(self.sock, ipc.FromLink)
        self.sock.sendall(b"".join(ipc.encode(message) for message in messages) + raw)

    def is_cut_off(self):
        self.sock.settimeout(0)
        try:
            return self.sock.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def close(self):
        self.channel.close()


def served(path, scenario, uids=None, models=("saffron",)):
    """Run *scenario* beside a server."""

    async def main():
        server = LinkServer(path, {"vault": ME} if uids is None else uids, set(models))
        server.start()
        try:
            return await scenario(server)
        finally:
            server.close()

    return asyncio.run(main())


def drop(process, link):
    process._leash.close()
    link.close()


async def settle(condition):
    for _ in range(200):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


def test_a_process_that_joins_gets_its_descriptors_and_a_leash(path):
    async def scenario(server):
        peer = Peer(path, ipc.Join(role="vault"))
        read, write = os.pipe()
        process, link = await server.take("vault", "", {"extra": read})
        os.close(read)
        joined, fds = peer.channel.recv(5)
        assert joined.fds == (LEASH, "extra")
        os.write(write, b"through")
        assert os.read(fds[1], 16) == b"through"
        assert process.pid == os.getpid()
        drop(process, link)
        peer.close()
        for fd in (*fds, write):
            os.close(fd)

    served(path, scenario)


def test_a_uid_of_no_role_is_cut_off_before_it_is_read(path):
    async def scenario(server):
        peer = Peer(path, ipc.Join(role="vault"))
        cut = await settle(peer.is_cut_off)
        peer.close()
        return cut, server.refused

    assert served(path, scenario, uids={"vault": ME + 1}) == (True, 1)


def test_control_the_same_peer_is_heard_when_its_uid_is_the_roles(path):
    async def scenario(server):
        peer = Peer(path, ipc.Join(role="vault"))
        drop(*await server.take("vault", "", {}))
        peer.close()
        return server.refused

    assert served(path, scenario) == 0


@pytest.mark.parametrize(
    ("messages", "raw"),
    [
        ([ipc.Join(role="journal")], b""),
        ([ipc.Join(role="engine", model="saffron")], b""),
        ([ipc.Join(role="vault", model="saffron")], b""),
        ([ipc.Join(role="vault"), ipc.Join(role="vault")], b""),
        ([ipc.Join(role="vault")], b"\x00"),
        ([ipc.Hello(role="vault", pid=1)], b""),
        ([], b"\xff\xff\xff\xff"),
        ([], b"GET / HTTP/1.1\r\n\r\n"),
        ([], b"\x02\x00\x00\x00{}"),
    ],
)
def test_a_peer_that_says_anything_else_is_cut_off(path, messages, raw):
    async def scenario(server):
        peer = Peer(path, *messages, raw=raw)
        cut = await settle(peer.is_cut_off)
        peer.close()
        return cut, server.refused

    assert served(path, scenario) == (True, 1)


def test_an_engine_must_be_of_a_served_model(path):
    async def scenario(server):
        stranger, known = (Peer(path, ipc.Join(role="engine", model=name)) for name in ("other", "saffron"))
        assert await settle(stranger.is_cut_off)
        drop(*await server.take("engine", "saffron", {}))
        for peer in (stranger, known):
            peer.close()

    served(path, scenario, uids={"engine": ME})


def test_the_newest_offer_wins_and_one_that_died_waiting_is_passed_over(path):
    async def scenario(server):
        first = Peer(path, ipc.Join(role="vault"))
        await settle(lambda: server._waiting)
        second = Peer(path, ipc.Join(role="vault"))
        assert await settle(first.is_cut_off)
        second.close()
        await asyncio.sleep(0.05)
        third = None

        async def later():
            nonlocal third
            await asyncio.sleep(0.05)
            third = Peer(path, ipc.Join(role="vault"))

        asking = asyncio.ensure_future(later())
        process, link = await server.take("vault", "", {})
        await asking
        joined, fds = third.channel.recv(5)
        assert joined.fds == (LEASH,)
        os.close(fds[0])
        drop(process, link)
        first.close()
        third.close()

    served(path, scenario)


def test_nobody_comes(path, monkeypatch):
    monkeypatch.setattr(units_link, "TAKE_WITHIN", 0.05)
    with pytest.raises(ChildDied, match="systemctl status casemate-vault"):
        served(path, lambda server: server.take("vault", "", {}))


def test_silent_peers_do_not_pile_up(path, monkeypatch):
    monkeypatch.setattr(units_link, "_MAX_HANDSHAKES", 4)

    async def scenario(server):
        peers = []
        for _ in range(6):
            peers.append(Peer(path))
            await asyncio.sleep(0.01)
        await settle(lambda: server.refused >= 2)
        refused = server.refused
        for peer in peers:
            peer.close()
        return refused

    assert served(path, scenario) == 2


def test_recorded_streams_have_no_unit(path):
    async def scenario(server):
        UnitLaunchers(server, path.parent).engine("saffron", replay=True)

    with pytest.raises(OperationError, match="recorded"):
        served(path, scenario)


# --- the leash --------------------------------------------------------------------------------------------------------

HOLD = """
import os, sys, time
from casemate.device import attach
attach.hold(int(sys.argv[1]))
os.set_inheritable(int(sys.argv[1]), True)
os.execv(sys.executable, [sys.executable, "-c", "import sys, time; print('held', flush=True); time.sleep(600)"])
"""


@pytest.fixture
def held():
    """Return (agent's end of the leash, a process on it that has gone through exec)."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdout=subprocess.PIPE
        )
    assert process.stdout.readline() == b"held\n"
    yield ours, process
    ours.close()
    process.kill()
    process.wait()
    process.stdout.close()


def test_pulling_the_leash_kills(held):
    leash, process = held
    leash.send(b"\0")
    assert process.wait(10) == -signal.SIGKILL


def test_losing_the_agent_kills(held):
    leash, process = held
    leash.close()
    assert process.wait(10) == -signal.SIGKILL


def test_control_a_process_on_no_leash_outlives_its_agent():
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(["sleep", "600"], pass_fds=[theirs.fileno()])
    theirs.close()
    ours.send(b"\0")
    ours.close()
    time.sleep(0.2)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_the_agent_sees_the_end_of_a_linked_process(held):
    leash, process = held

    async def main():
        ended = asyncio.get_running_loop().create_future()
        linked = units_link.LinkedProcess(process.pid, leash, "casemate-vault")
        linked.watch(ended.set_result)
        linked.kill()
        return await asyncio.wait_for(ended, 10)

    assert "journalctl -u casemate-vault" in asyncio.run(main())
    assert process.wait(10) == -signal.SIGKILL


def test_a_process_that_slipped_its_leash_is_given_up(monkeypatch):
    monkeypatch.setattr(units_link, "_GONE_WITHIN", 0.05)
    ours, theirs = socket.socketpair()

    async def main():
        ended = asyncio.get_running_loop().create_future()
        linked = units_link.LinkedProcess(1, ours, "casemate-vault")
        linked.watch(ended.set_result)
        linked.kill()
        return await asyncio.wait_for(ended, 10)

    assert "did not let itself be killed" in asyncio.run(main())
    theirs.close()


def test_a_process_that_talks_on_its_leash_is_killed(held):
    """Nothing is ever said on a leash: a byte from the other side is a process that is not what it was."""
    process = held[1]

    async def main():
        ended = asyncio.get_running_loop().create_future()
        fake, theirs = socket.socketpair()
        linked = units_link.LinkedProcess(process.pid, fake, "casemate-vault")
        linked.watch(ended.set_result)
        theirs.send(b"x")
        pulled = await asyncio.get_running_loop().run_in_executor(None, theirs.recv, 1)
        theirs.close()
        await asyncio.wait_for(ended, 10)
        return pulled

    assert asyncio.run(main()) == b"\0"


# --- what the vault brings along --------------------------------------------------------------------------------------


class FakeHome:
    id = "00112233445566aa"


def test_credentials_are_opened_by_name_and_only_this_homes_key(tmp_path):
    for name in ("casemate-keys_00112233445566aa.key", "casemate-keys_ffffffffffffffff.key", "other"):
        (tmp_path / name).write_text(name)
    found = attach.unlocking(FakeHome, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert set(found) == {"keyfile"}
    assert os.read(found["keyfile"], 100) == b"casemate-keys_00112233445566aa.key"
    os.close(found["keyfile"])
    (tmp_path / "casemate-passphrase").write_text("secret")
    both = attach.unlocking(FakeHome, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert set(both) == {"keyfile", "passphrase"}
    for fd in both.values():
        os.close(fd)
    assert attach.unlocking(FakeHome, {}) == {}
