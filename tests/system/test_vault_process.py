"""The real vault process: it unlocks with what it is handed, hands over weights, and dies when it should."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from casemate import keystores
from casemate.crypto import kdf
from casemate.crypto.secret import Secret
from casemate.device import models
from casemate.device.channel import Channel, ChannelClosed, pair
from casemate.device.children import start_python
from casemate.device.home import Home, owner_of
from casemate.formats import ipc
from support import gguf_files, homes


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)
    monkeypatch.setattr(models, "record", lambda *_: None)
    monkeypatch.setattr(kdf, "DEFAULT_COST", homes.CHEAP)
    return Home(tmp_path / "home").create()


def sources(home, text=b"correct horse"):
    return keystores.from_environment(home, {}, ask=lambda _new: Secret(text))


def add(home, found):
    keystores.create(home, found).wipe()
    path = home.path.parent / "tiny.gguf"
    path.write_bytes(gguf_files.tiny())
    return models.add_model(home, found, path, name="tiny")


class Journal(threading.Thread):
    """Confirms every record and remembers it."""

    def __init__(self, sock):
        super().__init__(daemon=True)
        self.events = []
        self._channel = Channel(sock, ipc.ToJournal)
        self.start()

    def run(self):
        with contextlib.suppress(ChannelClosed, OSError):
            while True:
                message, _ = self._channel.recv()
                self.events += [event["metadata"]["event_code"] for event in message.events]
                self._channel.send(ipc.Appended(id=message.id, index=len(self.events)))


def status_of(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@contextlib.contextmanager
def vault(home, fds, **settings):
    """Start the process as the agent does; yields (control, journal, process)."""
    (ours, theirs), (log, far) = pair(), pair()
    journal = Journal(log)
    with ours, log:
        with theirs:
            process = start_python("vault", owner_of("vault"), theirs.fileno())
        control = Channel(ours, ipc.ChildToAgent)
        try:
            with far:
                assert control.recv(30)[0].role == "vault"
                everything = {**fds, "journal": far.fileno()}
                start = ipc.Start(home=str(home.path), fds=tuple(everything), settings=settings)
                control.send(start, list(everything.values()))
            yield control, journal, process
        finally:
            control.close()
            process.wait(30)
            for fd in fds.values():
                os.close(fd)


def test_it_unlocks_and_hands_over(home):
    found = sources(home)
    info = add(home, found)
    with vault(home, found.descriptors()) as (control, journal, process):
        ready, _ = control.recv(30)
        assert ready.facts["assurance"] == "L1"
        assert ready.facts["reasons"] == ["the passphrase is handed over, not stored"]
        ours, theirs = pair()
        control.send(ipc.Load("tiny", str(info.path)), [theirs.fileno()])
        control.send(ipc.Ping(7))
        theirs.close()
        weights, (fd,) = Channel(ours, ipc.VaultToEngine).recv(30)
        assert os.pread(fd, weights.bytes, 0) == gguf_files.tiny()
        os.close(fd)
        replies = {type(control.recv(30)[0]) for _ in range(2)}
        assert replies == {ipc.Loaded, ipc.Pong}
        assert journal.events == ["key_used", "key_used", "model_loaded"]
        ours.close()
        owner = owner_of("vault")
        assert status_of(process.pid)["Uid"].split()[0] == str(owner.uid if owner else os.geteuid())
    assert process.returncode == 0


def test_a_wrong_passphrase_is_fatal_for_good_and_journaled(home):
    add(home, sources(home))
    with vault(home, sources(home, b"correct mouse").descriptors()) as (control, journal, process):
        fatal, _ = control.recv(30)
        assert (fatal.code, fatal.exit_code, fatal.transient) == ("not_authorised", 4, False)
        assert process.wait(30) == 4
    assert journal.events == ["unlock_refused"]


def test_it_dies_with_its_agent(home):
    found = sources(home)
    add(home, found)
    with vault(home, found.descriptors()) as (control, _, process):
        control.recv(30)
        control.socket.shutdown(socket.SHUT_RDWR)
        assert process.wait(5) == 0


@pytest.mark.root
def test_what_it_was_handed_is_closed_once_it_is_open(home):
    """Only root may look into the descriptors of an undumpable process."""
    found = sources(home)
    add(home, found)
    with vault(home, found.descriptors()) as (control, _, process):
        control.recv(30)
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{process.pid}/fd")]
        assert any("socket" in link for link in links)
        assert not any("passphrase" in link for link in links)
