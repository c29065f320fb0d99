"""The journal as a process: many clients, each with its own say; killed at any moment it loses nothing acknowledged."""

from __future__ import annotations

import base64
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from casemate.crypto import hpke
from casemate.device.channel import Channel, JournalClient, pair
from casemate.device.journal import LogFiles, Reader, verify
from casemate.errors import OperationError
from casemate.formats import event, ipc

PRIVATE, PUBLIC = hpke.generate()
ROLES = ("agent", "vault", "gateway")


class Journal:
    """A journal process under the hands of a pretend agent."""

    def __init__(self, home, roles=ROLES, owner=PUBLIC, **popen):
        (home / "journal").mkdir(parents=True, exist_ok=True)
        ours, theirs = pair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "casemate.device.journal"],
            env={"CASEMATE_CONTROL_FD": str(theirs.fileno()), "PATH": os.environ["PATH"]},
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            **popen,
        )
        theirs.close()
        self.control = Channel(ours, ipc.ChildToAgent)
        assert self.control.recv(30)[0].role == "journal"
        self.clients = {}
        ends = []
        for role in roles:
            mine, its = pair()
            self.clients[role] = JournalClient(mine)
            ends.append(its)
        settings = {"owner_public": base64.b64encode(owner).decode(), "origin_id": "abc"}
        start = ipc.Start(home=str(home), fds=tuple(f"client:{role}" for role in roles), settings=settings)
        self.control.send(start, [end.fileno() for end in ends])
        for end in ends:
            end.close()
        self.first, _ = self.control.recv(30)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.done()

    def stop(self):
        self.control.close()
        return self.done()

    def done(self):
        code = self.process.wait(20)
        self.process.stderr.close()
        for client in self.clients.values():
            client._channel.close()
        self.control.close()
        return code


def one(number):
    return event.model_loaded(model=f"m{number}", digest="d", now=1.0)


def refused(client="10.0.0.1"):
    return event.auth_refused(client=client, count=1, now=1.0)


def events(home):
    return [shown.event() for shown in Reader(LogFiles(home / "journal"), PRIVATE).events()]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def test_it_serves_attributes_and_stops(home):
    journal = Journal(home)
    assert isinstance(journal.first, ipc.Ready)
    assert journal.first.facts == {"size": 2, "epoch": 0, "origin": "casemate/abc"}
    assert journal.clients["vault"].append(one(1)) == 2
    assert journal.clients["gateway"].append(refused(), refused()) == 4
    journal.control.send(ipc.Ping(n=7))
    assert journal.control.recv(10)[0] == ipc.Pong(n=7)
    checked = verify(LogFiles(home / "journal"))
    assert checked.size + checked.pending == 5
    assert journal.stop() == 0
    assert [item.metadata.log_provider for item in events(home)] == ["journal", "vault", "gateway", "gateway"]
    assert verify(LogFiles(home / "journal")).size == 5


def test_a_client_cannot_speak_for_another_and_trying_is_recorded(home):
    journal = Journal(home)
    forged = one(1)
    forged["metadata"]["log_provider"] = "vault"
    for _ in range(5):
        with pytest.raises(OperationError, match="gateway may not report 'model_loaded'"):
            journal.clients["gateway"].append(forged)
    assert journal.clients["gateway"].append(refused()) > 0
    journal.stop()
    texts = [item.message for item in events(home)]
    assert [text for text in texts if "refused by" in text] == [
        f"{count} event(s) of gateway refused by event-role" for count in (1, 2, 4)
    ]
    assert not [text for text in texts if "loaded" in text]


def test_a_flood_of_strangers_events_has_a_bound(home):
    journal = Journal(home)
    accepted = 0
    with pytest.raises(OperationError, match="too much at once"):
        accepted = flood_events(journal.clients["gateway"])
    assert accepted == 0  # it ended by being refused
    assert journal.clients["vault"].append(one(1)) > 8000  # others go on
    journal.stop()
    assert "1 event(s) of gateway refused by event-rate" in [item.message for item in events(home)]


def flood_events(client):
    for _ in range(1000):
        client.append(*[refused()] * 1000)
    return 1_000_000


def test_a_restarted_client_is_attached_again(home):
    journal = Journal(home, roles=("agent",))
    mine, its = pair()
    journal.control.send(ipc.Attach(role="vault"), [its.fileno()])
    its.close()
    client = JournalClient(mine)
    assert client.append(one(1)) == 2
    client._channel.close()
    mine, its = pair()
    journal.control.send(ipc.Attach(role="vault"), [its.fileno()])
    its.close()
    client = JournalClient(mine)
    assert client.append(one(2)) == 3
    client._channel.close()
    assert journal.stop() == 0


def flood(sock, frame):
    """Send until the socket is full: this client never reads an answer."""
    while True:
        sock.send(frame)


def test_a_client_that_talks_nonsense_or_never_reads_holds_up_nobody(home):
    journal = Journal(home)
    noisy = journal.clients["gateway"]._channel.socket
    noisy.setblocking(False)
    frame = ipc.encode(ipc.Append(id=1, events=[refused()]))
    with pytest.raises(BlockingIOError):
        flood(noisy, frame)
    assert journal.clients["vault"].append(one(1), timeout=30) > 0
    nonsense = journal.clients["agent"]._channel.socket
    nonsense.sendall(b"\xff\xff\xff\x7fhello")
    assert nonsense.recv(1) == b""
    assert journal.clients["vault"].append(one(2), timeout=30) > 0
    journal.clients["gateway"]._channel.close()
    assert journal.stop() == 0


def test_what_was_posted_before_the_agent_left_is_kept(home):
    journal = Journal(home)
    sock = journal.clients["agent"]._channel.socket
    sock.sendall(ipc.encode(ipc.Append(id=1, events=[event.device_stopped(reason="signal", now=1.0)])))
    journal.stop()
    assert events(home)[-1].message == "device stopped: signal"


def test_an_altered_log_is_refused_with_exit_10(home):
    journal = Journal(home)
    journal.clients["vault"].append(one(1))
    journal.stop()
    tail = home / "journal" / "tail"
    data = bytearray(tail.read_bytes())
    data[200] ^= 1
    tail.write_bytes(data)
    journal = Journal(home)
    assert isinstance(journal.first, ipc.Fatal)
    assert (journal.first.exit_code, journal.first.transient) == (10, False)
    assert journal.first.check in {"tail-frame", "entries-missing"}
    assert "casemate journal archive" in journal.first.hint
    assert journal.done() == 10


def test_a_second_journal_is_refused_for_the_moment(home):
    journal = Journal(home)
    second = Journal(home)
    assert isinstance(second.first, ipc.Fatal)
    assert (second.first.exit_code, second.first.transient) == (6, True)
    second.done()
    journal.stop()


def burst(client, role, acknowledged, stop):
    """Append as fast as answers come; keep what was acknowledged."""
    number = 0
    while not stop.is_set():
        made = [one(f"{role}-{number + n}") for n in range(random.Random(number).randrange(1, 9))]
        try:
            client.append(*made, timeout=20)
        except OperationError:
            return
        acknowledged += [item["app"]["name"] for item in made]
        number += len(made)


def kill_round(home, seed):
    journal = Journal(home)
    acknowledged: list[str] = []
    stop = threading.Event()
    workers = [
        threading.Thread(target=burst, args=(journal.clients[role], f"{role}{seed}", acknowledged, stop))
        for role in ("vault", "agent")
    ]
    for worker in workers:
        worker.start()
    time.sleep(random.Random(seed).uniform(0.02, 0.3))
    journal.process.send_signal(signal.SIGKILL)
    for worker in workers:
        worker.join(30)
    stop.set()
    journal.done()
    checked = verify(LogFiles(home / "journal"))  # what is on disk is sound even before anybody repairs it
    names = {item.app.name for item in events(home) if item.app}
    assert set(acknowledged) <= names
    return len(acknowledged), checked


def rounds(home, count):
    total = 0
    for seed in range(count):
        acknowledged, _ = kill_round(home, seed)
        total += acknowledged
    last = Journal(home)
    assert isinstance(last.first, ipc.Ready)
    last.stop()
    checked = verify(LogFiles(home / "journal"))
    assert (checked.pending, checked.epochs) == (0, count + 1)
    assert checked.size >= total
    return total


def test_kill_9_in_a_burst_loses_nothing_acknowledged(home):
    assert rounds(home, 3) > 50


@pytest.mark.long
@pytest.mark.timeout(600)
def test_kill_9_thirty_times(home):
    assert rounds(home, 30) > 2000


def fill(client):
    """Append until it is refused; return the last number that went in, and why the next did not."""
    for number in range(1, 2000):
        try:
            client.append(one(number))
        except OperationError as error:
            return number - 1, error
    raise AssertionError("the disk never filled up")


def test_a_full_disk_refuses_and_recovers(home):
    """RLIMIT_FSIZE stands in for a full disk: writes past it fail with EFBIG (Python ignores SIGXFSZ)."""
    journal = Journal(home)
    journal.clients["vault"].append(one(0))
    resource.prlimit(journal.process.pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    kept, why = fill(journal.clients["vault"])
    assert "cannot write" in why.message
    assert "free space" in why.hint
    resource.prlimit(journal.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.clients["vault"].append(one("after"))
    assert journal.stop() == 0
    names = [item.app.name for item in events(home) if item.app]
    assert names == [f"m{number}" for number in range(kept + 1)] + ["mafter"]
    verify(LogFiles(home / "journal"))


def test_agent_gone_means_journal_gone(home):
    journal = Journal(home)
    journal.control.socket.shutdown(socket.SHUT_RDWR)
    assert journal.done() == 0
