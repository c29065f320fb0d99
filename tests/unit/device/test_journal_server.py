"""The serving loop, driven by hand: batches, turns, urgency, rates, and a disk that fills up under it."""

from __future__ import annotations

import selectors

import pytest

from casemate.crypto import hpke
from casemate.device.channel import Channel, pair
from casemate.device.journal import JournalWriter, LogFiles
from casemate.device.journal import server as server_module
from casemate.device.journal.server import BATCH, Allowance, JournalServer
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import event, ipc

_, PUBLIC = hpke.generate()


class Clock:
    now = 100.0

    def wall(self):
        return 1_700_000_000.0

    def monotonic(self):
        return self.now


class Bench:
    """A server with three clients and no process around it."""

    def __init__(self, path):
        path.mkdir()
        self.clock = Clock()
        self.writer = JournalWriter(path, home_id="abc", owner_public=PUBLIC, clock=self.clock)
        self.files = LogFiles(path)
        self.agent, control = pair()
        self.control = Channel(control, ipc.AgentToChild)
        self.server = JournalServer(self.writer, self.control, self.clock)
        self.socks, self.answers, self.commits = {}, {}, []
        for role in ("vault", "gateway", "agent"):
            ours, theirs = pair()
            ours.setblocking(False)
            self.server.attach(role, theirs.detach())
            self.socks[role] = ours
            self.answers[role] = ipc.FrameReader(ipc.FromJournal)
        real = self.writer.append
        self.writer.append = lambda events: self.commits.append(len(events)) or real(events)

    def send(self, role, events, ident=1):
        self.socks[role].sendall(ipc.encode(ipc.Append(id=ident, events=events)))

    def turn(self):
        for key, mask in self.server._selector.select(0):
            if key.data is not None:
                self.server._touch(key.data, mask)
        self.server._work()

    def received(self, role):
        try:
            return self.answers[role].feed(self.socks[role].recv(1 << 20))
        except BlockingIOError:
            return []

    def close(self):
        self.writer.close()
        self.agent.close()
        self.control.close()
        for link in self.server._links:
            link.sock.close()
        for sock in self.socks.values():
            sock.close()
        self.server._selector.close()


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path / "journal")
    yield made
    made.close()


def low(number=1):
    return event.model_loaded(model=f"m{number}", digest="d", now=1.0)


def severe():
    return event.model_refused(model="m", check="gguf-header", reason="bad", now=1.0)


def refused():
    return event.auth_refused(client="10.0.0.1", count=1, now=1.0)


def test_waiting_requests_share_one_commit_and_get_their_own_index(bench):
    bench.send("vault", [low()], 1)
    bench.send("vault", [low(), low()], 2)
    bench.send("gateway", [refused()], 7)
    bench.turn()
    assert bench.commits == [4]
    assert {reply.id: reply.index for reply in bench.received("vault")} == {1: 2, 2: 5}
    assert bench.received("gateway") == [ipc.Appended(id=7, index=3)]


def test_a_commit_is_bounded_and_clients_take_turns(bench):
    for n in range(100):
        bench.send("gateway", [refused()], n)
    for n in range(3):
        bench.send("vault", [low()], n)
    bench.turn()
    assert max(bench.commits) == BATCH
    assert sum(bench.commits) == 103
    assert max(reply.index for reply in bench.received("vault")) < 10  # not behind the 100


def test_a_large_request_goes_alone_and_whole(bench):
    bench.send("vault", [low()], 1)
    bench.send("vault", [low(n) for n in range(100)], 2)
    bench.send("vault", [low()], 3)
    bench.turn()
    assert bench.commits == [1, 100, 1]
    assert [reply.index for reply in bench.received("vault")] == [2, 102, 103]


def test_one_bad_event_refuses_its_request_only(bench, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_EVENTS", 5)
    bench.send("vault", [low(), {"prompt": "x"}], 1)
    bench.send("vault", [low()], 2)
    bench.send("vault", [], 3)
    bench.send("vault", [low()] * 6, 4)
    bench.turn()
    replies = {reply.id: reply for reply in bench.received("vault")}
    assert [type(replies[n]).__name__ for n in (1, 2, 3, 4)] == [
        "NotAppended",
        "Appended",
        "NotAppended",
        "NotAppended",
    ]
    assert replies[1].code == "untrusted_data"


def published(bench):
    return bench.writer.published == bench.writer.size


def test_the_checkpoint_follows_within_its_time_and_at_once_when_severe(bench):
    bench.send("vault", [low()])
    bench.turn()
    assert published(bench)  # nothing was published lately
    bench.send("vault", [low()])
    bench.turn()
    assert not published(bench)
    assert 0 < bench.server._patience() <= server_module.PUBLISH_EVERY
    bench.send("vault", [severe()])
    bench.turn()
    assert published(bench)
    assert bench.server._patience() is None
    bench.send("vault", [low()])
    bench.turn()
    bench.clock.now += server_module.PUBLISH_EVERY
    bench.turn()
    assert published(bench)


def test_a_disk_too_full_for_a_checkpoint_does_not_stop_the_log(bench, monkeypatch, capfd):
    monkeypatch.setattr(LogFiles, "write", lambda *_, **__: (_ for _ in ()).throw(OperationError("disk full")))
    bench.send("vault", [low()])
    bench.turn()
    assert [type(reply).__name__ for reply in bench.received("vault")] == ["Appended"]
    assert "checkpoint not written: disk full" in capfd.readouterr().err
    monkeypatch.undo()
    bench.clock.now += server_module.PUBLISH_RETRY
    bench.turn()
    assert published(bench)


def test_a_broken_disk_ends_the_process(bench):
    bench.writer._tail.broken = True
    bench.send("vault", [low()])
    with pytest.raises(OperationError, match="disk failed"):
        bench.turn()


def test_a_client_that_leaves_is_forgotten_after_its_last_words(bench):
    bench.send("vault", [low()])
    bench.socks["vault"].close()
    bench.turn()
    bench.turn()
    assert sum(bench.commits) == 1
    assert [link.role for link in bench.server._links] == ["gateway", "agent"]


def test_a_client_that_does_not_read_is_not_read(bench):
    link = next(link for link in bench.server._links if link.role == "gateway")
    link._out = bytearray(server_module._MAX_UNREAD)
    assert link.wants == selectors.EVENT_WRITE
    link._out = bytearray(10)
    assert link.wants == selectors.EVENT_WRITE | selectors.EVENT_READ
    link._out.clear()


def test_only_known_roles_are_attached(bench):
    ours, theirs = pair()
    with pytest.raises(UntrustedDataError, match="no client"):
        bench.server.attach("engine", theirs.fileno())
    ours.close()
    theirs.close()


def test_an_allowance_fills_up_again():
    allowance = Allowance(10.0, 20.0, now=0.0)
    assert allowance.take(20, 0.0)
    assert not allowance.take(1, 0.0)
    assert allowance.take(5, 0.5)
    assert not allowance.take(21, 1000.0)  # never more than the burst
    assert allowance.take(20, 1000.0)
