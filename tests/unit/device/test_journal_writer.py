"""What the writer promises: order, durability before return, a checkpoint never ahead, a clean start after a crash."""

from __future__ import annotations

import errno
import os

import pytest

from casemate.crypto import hpke
from casemate.device.journal import JournalWriter, LogFiles, Reader, identity, prove, verify
from casemate.device.journal import tail as tail_module
from casemate.device.journal import writer as writer_module
from casemate.errors import BusyError, NotAuthorisedError, OperationError, UntrustedDataError
from casemate.formats import event, tlog

PRIVATE, PUBLIC = hpke.generate()


class Clock:
    def wall(self):
        return 1_700_000_000.0

    def monotonic(self):
        return 1.0


def open_log(path, **kwargs):
    path.mkdir(exist_ok=True)
    return JournalWriter(path, home_id="abc", owner_public=PUBLIC, clock=Clock(), **kwargs)


def some(count, start=0):
    return [event.model_loaded(model=f"m{start + n}", digest="sha256:00", now=1.0) for n in range(count)]


def messages(path, start=0):
    return [shown.event().message for shown in Reader(LogFiles(path), PRIVATE).events(start)]


def loaded(path):
    return [text for text in messages(path) if text.startswith("model")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


def test_a_new_log_opens_an_epoch_and_publishes(path):
    with open_log(path) as writer:
        assert (writer.size, writer.published, writer.epoch) == (2, 2, 0)
        assert writer.origin == "casemate/abc"
    checked = verify(LogFiles(path))
    assert (checked.size, checked.pending, checked.epochs) == (2, 0, 1)
    assert messages(path) == ["journal epoch 0 opened"]


@pytest.mark.parametrize("count", [1, 254, 255, 256, 257, 509, 510, 511, 613, 1000])
def test_every_published_size_verifies_and_reads_back(path, count):
    with open_log(path) as writer:
        for start in range(0, count, 100):
            writer.record(some(min(100, count - start), start), role="vault")
    assert verify(LogFiles(path)).size == count + 2
    assert loaded(path) == [f"model m{n} loaded" for n in range(count)]


def test_it_continues_where_it_stopped(path):
    for start in range(0, 900, 300):
        with open_log(path) as writer:
            writer.record(some(300, start), role="vault")
    checked = verify(LogFiles(path))
    assert (checked.size, checked.epochs) == (906, 3)
    assert loaded(path) == [f"model m{n} loaded" for n in range(900)]


def test_append_is_durable_before_it_returns_and_the_checkpoint_follows(path):
    writer = open_log(path)
    writer.record(some(300), role="vault")
    assert verify(LogFiles(path)).size == 2  # not published yet
    assert verify(LogFiles(path)).pending == 300
    assert len(loaded(path)) == 300
    writer.publish()
    assert (verify(LogFiles(path)).size, verify(LogFiles(path)).pending) == (302, 0)
    writer.close()


def test_partial_tiles_of_published_checkpoints_stay_until_the_tile_is_full(path):
    with open_log(path) as writer:
        writer.record(some(10), role="vault")
        writer.publish()
        writer.record(some(10), role="vault")
        writer.publish()
        assert LogFiles(path).names("tile/0/000.p") == ["12", "2", "22"]
        assert LogFiles(path).names("tile/entries/000.p") == ["12", "2", "22"]
        writer.record(some(300), role="vault")
        writer.publish()
        assert LogFiles(path).names("tile/0") == ["000", "001.p"]
        assert LogFiles(path).names("tile/entries") == ["000", "001.p"]
        assert LogFiles(path).size("tile/0/000") == 8192


def test_the_tail_is_renewed_once_its_bundles_are_safe(path, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_TAIL_ENTRIES", 600)
    with open_log(path) as writer:
        sizes = []
        for start in range(0, 2000, 50):
            writer.record(some(50, start), role="vault")
            writer.publish()
            sizes.append(LogFiles(path).size("tail"))
    assert max(sizes) < 400_000
    assert tail_module.scan((path / "tail").read_bytes(), None).base >= 1536
    with open_log(path) as writer:
        writer.record(some(1, 2000), role="vault")
    assert verify(LogFiles(path)).size == 2005
    assert loaded(path) == [f"model m{n} loaded" for n in range(2001)]


def test_the_tail_is_bounded_in_bytes_even_when_nobody_publishes(path, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_TAIL_BYTES", 300_000)
    with open_log(path) as writer:
        for _ in range(100):
            writer.append([os.urandom(500) for _ in range(20)])
            assert LogFiles(path).size("tail") < 2 * 300_000 + 255 * 600
    assert verify(LogFiles(path)).size == 2002


@pytest.mark.parametrize("events", [[], [b""] * 65_537, [bytes(1 << 20)] * 17])
def test_one_append_is_bounded(path, events):
    with open_log(path) as writer, pytest.raises(OperationError, match="at once"):
        writer.append(events)


def test_keys_ratchet_inside_an_epoch_and_the_reader_follows(path, monkeypatch):
    monkeypatch.setattr(writer_module, "EPOCH_ENTRIES", 100)
    with open_log(path) as writer:
        for start in range(0, 500, 50):
            writer.record(some(50, start), role="vault")
        assert writer.epoch == 4
    with open_log(path) as writer:
        assert writer.epoch == 5
    assert loaded(path) == [f"model m{n} loaded" for n in range(500)]
    assert verify(LogFiles(path)).epochs == 2


def test_only_one_writer(path):
    with open_log(path), pytest.raises(BusyError):
        open_log(path)
    open_log(path).close()


def test_a_role_cannot_record_what_is_not_its_to_say(path):
    with open_log(path) as writer:
        with pytest.raises(UntrustedDataError, match="gateway may not report"):
            writer.record(some(1), role="gateway")
        assert writer.size == 2


def test_the_device_cannot_read_its_own_log(path):
    with open_log(path) as writer:
        writer.record([event.model_loaded(model="very-secret-name", digest="d", now=1.0)], role="vault")
    kept = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
    assert b"very-secret-name" not in kept
    assert PRIVATE.reveal() not in kept


def test_another_owners_key_opens_nothing(path):
    open_log(path).close()
    stranger, _ = hpke.generate()
    with pytest.raises(NotAuthorisedError, match="does not open journal epoch 0"):
        list(Reader(LogFiles(path), stranger).events())


# --- crashes ----------------------------------------------------------------------------------------------------------


def crash(writer):
    """Let go of everything as a killed process would: no publish, no close."""
    os.close(writer._tail._fd)
    writer._tail.close = lambda: None
    writer._closed = True
    writer._stack.close()


@pytest.mark.parametrize("count", [0, 5, 300, 1500])
def test_unpublished_entries_survive_a_crash(path, count):
    writer = open_log(path)
    if count:
        writer.record(some(count), role="vault")
    crash(writer)
    with open_log(path) as writer:
        assert writer.size == count + 4
    assert verify(LogFiles(path)).size == count + 4
    assert len(loaded(path)) == count


def test_a_torn_tail_is_dropped_at_any_byte_and_recorded(path):
    writer = open_log(path)
    writer.record(some(3), role="vault")
    whole = LogFiles(path).size("tail")
    writer.record(some(2, 3), role="vault")
    crash(writer)
    data = (path / "tail").read_bytes()
    for cut in {whole + 1, whole + 4, whole + 60, whole + 61, (whole + len(data)) // 2, len(data) - 1}:
        (path / "tail").write_bytes(data[:cut])
        open_log(path).close()
        assert messages(path)[-1] == f"torn tail of {cut - whole} bytes dropped at entry 5"
        assert loaded(path) == ["model m0 loaded", "model m1 loaded", "model m2 loaded"]
        verify(LogFiles(path))
        for name in ("tail", "checkpoint"):  # back to before this round's recovery
            (path / name).unlink()
        (path / "tail").write_bytes(data)
        restore_checkpoint(path)


def restore_checkpoint(path):
    me = identity.load(LogFiles(path))
    leaves = [tlog.leaf_hash(item) for item in tail_module.scan((path / "tail").read_bytes(), None).entries[:2]]
    note = tlog.Checkpoint(me.origin, 2, tlog.root_of(leaves)).sign(me.key)
    (path / "checkpoint").write_bytes(note)


def test_blocks_of_the_last_frame_that_never_reached_the_disk_are_a_torn_tail(path):
    writer = open_log(path)
    whole = LogFiles(path).size("tail")
    writer.record(some(40), role="vault")
    crash(writer)
    data = bytearray((path / "tail").read_bytes())
    data[whole + 20 : whole + 4096] = bytes(4076)
    (path / "tail").write_bytes(data)
    open_log(path).close()
    assert "torn tail" in messages(path)[-1]


def test_tiles_lost_in_a_power_cut_are_written_again(path):
    writer = open_log(path)
    writer.record(some(1000), role="vault")
    writer.publish()
    crash(writer)
    for name in ("tile/0/000", "tile/0/001", "tile/entries/002"):
        (path / name).write_bytes(b"")
    (path / "tile/entries/001").unlink()
    with open_log(path):
        pass
    assert verify(LogFiles(path)).size == 1005
    assert messages(path)[-1] == "4 journal file(s) restored"


def test_a_crash_while_the_tail_is_renewed_loses_nothing(path, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_TAIL_ENTRIES", 300)
    writer = open_log(path)
    writer.record(some(1000), role="vault")

    def power_cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer_module.Tail, "create", power_cut)
    with pytest.raises(KeyboardInterrupt):
        writer.publish()
    crash(writer)
    monkeypatch.undo()
    with open_log(path) as writer:
        assert writer.size == 1004
    assert len(loaded(path)) == 1000


# --- a disk that is full or broken ------------------------------------------------------------------------------------


def test_a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_space(path, monkeypatch):
    writer = open_log(path)
    writer.record(some(10), role="vault")
    real = os.write

    def half_then_full(fd, data):
        if len(data) < 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, bytes(data)[: len(data) // 2])

    epoch = writer.epoch
    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(OperationError, match="No space left") as refused:
        writer.record(some(5, 10), role="vault")
    assert "free space" in refused.value.hint
    monkeypatch.undo()
    assert (writer.size, writer.broken) == (12, False)
    assert writer.epoch == epoch + 1  # never the same nonce twice
    writer.record(some(5, 100), role="vault")
    writer.close()
    assert verify(LogFiles(path)).size == 17
    assert loaded(path)[-1] == "model m104 loaded"


def test_a_checkpoint_that_does_not_fit_the_disk_comes_later(path, monkeypatch):
    writer = open_log(path)
    writer.record(some(600), role="vault")
    monkeypatch.setattr(LogFiles, "write", lambda *_, **__: (_ for _ in ()).throw(OperationError("disk full")))
    with pytest.raises(OperationError):
        writer.publish()
    monkeypatch.undo()
    writer.record(some(1, 600), role="vault")
    writer.close()
    assert verify(LogFiles(path)).size == 603


def test_after_a_failed_sync_the_writer_stops(path, monkeypatch):
    writer = open_log(path)

    def broken(_fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OperationError):
        writer.record(some(1), role="vault")
    monkeypatch.undo()
    assert writer.broken
    with pytest.raises(OperationError, match="disk failed"):
        writer.record(some(1), role="vault")
    writer.close()
    open_log(path).close()
    verify(LogFiles(path))


def test_a_proof_stands_alone(path):
    with open_log(path) as writer:
        writer.record(some(700), role="vault")
    proof, data = prove(LogFiles(path), 432)
    again = tlog.parse_proof(proof.pack())
    key = tlog.VerifierKey.parse((path / "log.vkey").read_text())
    assert again.verify(data, [key]).size == 702
    with pytest.raises(UntrustedDataError):
        again.verify(data + b"x", [key])
