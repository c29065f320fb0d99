"""The vault's core without its process: what it proves, in which order it acts, what it does when something fails."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from types import SimpleNamespace

import pytest

from casemate.clock import SystemClock
from casemate.device import channel, models, sealed, vault
from casemate.device.channel import Channel, ChannelClosed
from casemate.errors import OperationError
from casemate.formats import ipc
from support import gguf_files, homes


@pytest.fixture(autouse=True)
def _inspect_here(monkeypatch):
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    made = homes.make(tmp_path, monkeypatch)
    made.add()
    made.events.clear()
    return made


@pytest.fixture
def load(bench):
    """Ask for a load; returns the reply and what came down the supply link (bytes, or None)."""
    with bench.unlock() as keystore:
        made = vault.Vault(bench.home, keystore, lambda *events: bench.events.extend(events), SystemClock(), {})

        def ask(model="tiny", path=""):
            ours, theirs = channel.pair()
            with ours, theirs:
                reply = made.load(ipc.Load(model, path), ours, lambda: None)
                ours.shutdown(socket.SHUT_WR)
                return reply, received(theirs)

        ask.vault = made
        yield ask


def received(sock):
    try:
        message, (fd,) = Channel(sock, ipc.VaultToEngine).recv(1.0)
    except ChannelClosed:
        return None
    assert message.bytes == os.fstat(fd).st_size
    data = os.pread(fd, message.bytes, 0)
    os.close(fd)
    return data


def test_the_engine_gets_the_model_and_the_journal_knows(bench, load):
    reply, data = load(path=str(homes.container_of(bench)))
    assert isinstance(reply, ipc.Loaded)
    assert reply.digest == models.show_model(bench.home, "tiny").digest
    assert data == gguf_files.tiny()
    assert bench.said() == ["key_used", "model_loaded"]


def test_what_is_handed_over_can_never_change(bench, load):
    ours, theirs = channel.pair()
    with ours, theirs:
        load.vault.load(ipc.Load("tiny", ""), ours, lambda: None)
        _, (fd,) = Channel(theirs, ipc.VaultToEngine).recv(1.0)
    assert fcntl.fcntl(fd, 1034) & 0b11111 == 0b11111  # F_GET_SEALS: seal, shrink, grow, write, future write
    for attempt in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 1 << 20)):
        with pytest.raises(PermissionError):
            attempt()
    assert not os.fstat(fd).st_mode & 0o111
    os.close(fd)


@pytest.mark.parametrize("at", [0, 20, 130, 9000, 16384, -1])
def test_a_changed_byte_means_no_engine_sees_anything(bench, load, at):
    path = homes.container_of(bench)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    reply, got = load()
    assert isinstance(reply, ipc.LoadFailed)
    assert reply.exit_code == 10
    assert reply.check.startswith("container-")
    assert got is None
    assert bench.said() == ["model_refused"]


def test_a_path_outside_the_store_is_refused(bench, load, tmp_path):
    elsewhere = tmp_path / "tiny.cmodel"
    elsewhere.write_bytes(homes.container_of(bench).read_bytes())
    reply, got = load(path=str(elsewhere))
    assert (reply.check, got) == ("load-path", None)
    reply, got = load(model="../../etc/passwd")
    assert (reply.code, got) == ("usage", None)


def test_a_missing_model_is_not_an_attack(bench, load):
    reply, _ = load(model="nothing")
    assert (reply.code, reply.exit_code, reply.check) == ("not_found", 5, "")
    assert bench.said() == []


def test_a_model_that_does_not_fit_is_refused_before_anything_is_decrypted(load, monkeypatch):
    monkeypatch.setattr(vault, "available_memory", lambda: 1 << 20)
    monkeypatch.setattr(vault, "unseal_into_memory", lambda *_: pytest.fail("it was decrypted"))
    reply, got = load()
    assert (reply.exit_code, got) == (1, None)
    assert "MiB" in reply.message
    assert "smaller" in reply.hint


def test_nothing_is_handed_over_that_the_journal_did_not_take(bench, load):
    def dead(*_events):
        raise OperationError("the journal did not confirm the record")

    load.vault._journal = dead
    reply, got = load()
    assert (reply.code, got) == ("failed", None)


def test_an_engine_that_went_away_is_reported(load):
    ours, theirs = channel.pair()
    theirs.close()
    with ours:
        reply = load.vault.load(ipc.Load("tiny", ""), ours, lambda: None)
    assert isinstance(reply, ipc.LoadFailed)
    assert "engine went away" in reply.message


def test_no_descriptor_of_plaintext_stays_open(bench, load):
    before = len(os.listdir("/proc/self/fd"))
    load()
    homes.container_of(bench).write_bytes(homes.container_of(bench).read_bytes()[:-1] + b"?")
    load()
    assert len(os.listdir("/proc/self/fd")) == before


def test_pings_are_answered_during_a_load_and_eof_ends_it(bench, load, tmp_path):
    gguf_files.write_sized(tmp_path / "big.gguf", 4 << 20)
    bench.add((tmp_path / "big.gguf").read_bytes(), "big")
    agent, child = channel.pair()
    control = Channel(agent, ipc.ChildToAgent)
    supply, engine = channel.pair()
    control.send(ipc.Load("big", ""), [supply.fileno()])
    for n in range(3):
        control.send(ipc.Ping(n))
    supply.close()
    agent.shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelClosed):
        vault.serve(SimpleNamespace(control=Channel(child, ipc.AgentToChild)), load.vault)
    replies = [control.recv(1.0)[0] for _ in range(3)]
    assert replies == [ipc.Pong(0), ipc.Pong(1), ipc.Pong(2)]
    with contextlib.closing(engine), agent, child:
        assert received(engine) is None


# --- memory -----------------------------------------------------------------------------------------------------------


def proc(tmp_path, available_kib, group="0::/a/b\n"):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available_kib} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(group)
    return tmp_path / "proc"


def limit(tmp_path, place, maximum, current, reclaimable=0):
    path = tmp_path / "cgroup" / place
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(f"{maximum}\n")
    (path / "memory.current").write_text(f"{current}\n")
    (path / "memory.stat").write_text(f"anon 1\ninactive_file {reclaimable}\n")


def test_free_memory_is_what_the_kernel_says(tmp_path):
    assert sealed.available_memory(proc(tmp_path, 1000), tmp_path / "cgroup") == 1000 * 1024


def test_a_control_group_on_the_way_up_lowers_it(tmp_path):
    root = proc(tmp_path, 1000)
    limit(tmp_path, "a/b", "max", 5)
    limit(tmp_path, "a", 300_000, 200_000, reclaimable=50_000)
    assert sealed.available_memory(root, tmp_path / "cgroup") == 150_000
    limit(tmp_path, "a/b", 10, 500)
    assert sealed.available_memory(root, tmp_path / "cgroup") == 0


def test_the_cache_of_every_slot_counts():
    facts = SimpleNamespace(context_length=4096, kv_bytes_per_token=1 << 10)
    model = SimpleNamespace(labels=SimpleNamespace(facts=facts), header=SimpleNamespace(plain_size=100 << 20))
    fits = (100 << 20) + 2 * 4096 * 1024 + (32 << 20)
    sealed.require_memory(model, 0, 2, fits)
    with pytest.raises(OperationError):
        sealed.require_memory(model, 0, 2, fits - 1)
    with pytest.raises(OperationError):
        sealed.require_memory(model, 8192, 2, fits)


def test_an_older_kernel_gets_a_memory_file_too(monkeypatch):
    real = os.memfd_create

    def before_6_3(name, flags):
        if flags & 0x8:
            raise OSError(22, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(sealed.os, "memfd_create", before_6_3)
    os.close(sealed._memory_file())
