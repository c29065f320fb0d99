"""Rewriting history: what the device's own files give away, and what only a checkpoint kept elsewhere does.

The forger below can rebuild every tile and, when it has the log's key, sign and rebuild the tail as well. That it then
passes is the positive control of every other test here: what stops it is the signature, not its clumsiness.
"""

from __future__ import annotations

import random
import shutil

import pytest

from casemate.crypto import hpke
from casemate.crypto.signing import SigningKey
from casemate.device.journal import JournalWriter, LogFiles, Reader, entry, identity, tail, verify
from casemate.errors import UntrustedDataError
from casemate.formats import event, tlog

PRIVATE, PUBLIC = hpke.generate()
COUNT = 700
KEPT_AT = 600


class Clock:
    def wall(self):
        return 1_700_000_000.0

    def monotonic(self):
        return 1.0


def open_log(path):
    return JournalWriter(path, home_id="abc", owner_public=PUBLIC, clock=Clock())


def loaded(number):
    return event.model_loaded(model=f"m{number}", digest="d", now=1.0)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Make a log of 700 entries in two epochs, a checkpoint somebody kept at 600, and a snapshot from then."""
    path = tmp_path_factory.mktemp("original") / "journal"
    path.mkdir()
    with open_log(path) as writer:
        writer.record([loaded(n) for n in range(KEPT_AT - writer.size)], role="vault")
        writer.publish()
        kept = (path / "checkpoint").read_bytes()
    shutil.copytree(path, path.with_name("snapshot"))
    with open_log(path) as writer:
        writer.record([loaded(n) for n in range(KEPT_AT, COUNT)], role="vault")
    path.with_name("kept").write_bytes(kept)
    return path


@pytest.fixture
def path(original, tmp_path):
    shutil.copytree(original, tmp_path / "journal")
    return tmp_path / "journal"


@pytest.fixture
def kept(original):
    return original.with_name("kept").read_bytes()


def fault(path, **kwargs):
    """Return the check that `verify` fails, or None when the log passes."""
    try:
        verify(LogFiles(path), **kwargs)
    except UntrustedDataError as error:
        return error.check
    return None


def entries_of(path):
    files = LogFiles(path)
    size = verify(files).size
    out = []
    for start in range(0, size, 256):
        name = tlog.entries_path(start // 256, min(256, size - start))
        out += tlog.parse_bundle(files.read(name))
    return out


def forge(path, entries, *, key):
    """Rebuild the whole log around *entries*, signed with *key* if there is one."""
    files = LogFiles(path)
    shutil.rmtree(path / "tile")
    state, rest = tlog.TreeState(), []
    for data in entries:
        rest.append(data)
        for tile in state.add(tlog.leaf_hash(data)):
            files.write(tlog.tile_path(tile.level, tile.index), tlog.pack_tile(tile.hashes))
            if tile.level == 0:
                files.write(tlog.entries_path(tile.index), tlog.pack_bundle(rest))
                rest = []
    for level, index, width in tlog.partial_tiles(state.size):
        files.write(tlog.tile_path(level, index, width), tlog.pack_tile(state.levels[level]))
        if level == 0:
            files.write(tlog.entries_path(index, width), tlog.pack_bundle(rest))
    if key:
        origin = identity.load_verifier(files).name
        files.write("checkpoint", tlog.Checkpoint(origin, state.size, state.root()).sign(key))
        with key.derive("journal/tail") as tail_key:
            tail.Tail.create(files, tail_key, state, rest).close()


def readdress(data, index):
    """Make an entry claim another place."""
    return index.to_bytes(8, "big") + data[8:]


def edit(entries, at=300):
    """Change the last byte of one; never to zero, which is what a power cut leaves and the tail repairs."""
    last = entries[at][-1]
    return [*entries[:at], entries[at][:-1] + bytes([last ^ 1 or last ^ 2]), *entries[at + 1 :]]


def delete(entries, at=300):
    return [readdress(data, n) for n, data in enumerate([*entries[:at], *entries[at + 1 :]])]


def reorder(entries, at=300):
    swapped = [*entries[:at], entries[at + 1], entries[at], *entries[at + 2 :]]
    return [readdress(data, n) for n, data in enumerate(swapped)]


def insert(entries, at=300):
    return [readdress(data, n) for n, data in enumerate([*entries[:at], entries[5], *entries[at:]])]


def cut(entries):
    return entries[:500]


DEEDS = [edit, delete, reorder, insert, cut]


# --- without the log's key --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deed", DEEDS)
def test_history_rewritten_without_the_key_is_found(path, deed):
    forge(path, deed(entries_of(path)), key=None)
    assert fault(path) in {"root", "tile-missing", "bundle-format", "entries"}
    if deed is cut:  # the same as files a power cut took: the tail has them all, so nothing was lost
        open_log(path).close()
        assert verify(LogFiles(path)).size > COUNT
        return
    with pytest.raises(UntrustedDataError):
        open_log(path)


@pytest.mark.parametrize("deed", DEEDS)
def test_history_signed_by_a_strangers_key_is_found(path, deed):
    forge(path, deed(entries_of(path)), key=SigningKey.generate())
    assert fault(path) in {"checkpoint-signature", "checkpoint-format"}


@pytest.mark.parametrize("deed", DEEDS)
def test_control_the_same_rewriting_with_the_stolen_key_passes_locally(path, deed, kept):
    """The honest limit: the device's own files cannot tell. A checkpoint kept elsewhere does."""
    forge(path, deed(entries_of(path)), key=identity.load(LogFiles(path)).key)
    assert fault(path) is None
    assert fault(path, against=kept) == ("against-size" if deed is cut else "against-root")


@pytest.mark.parametrize("at", [260, 610])
def test_a_bundle_changed_together_with_its_tile_stops_the_writer(path, at):
    """In a full bundle and in the newest, partial one."""
    entries = edit(entries_of(path), at)
    name = tlog.entries_path(at // 256, min(256, len(entries) - at // 256 * 256))
    start = at // 256 * 256
    LogFiles(path).write(name, tlog.pack_bundle(entries[start : start + 256]))
    assert fault(path) == "entries"
    with pytest.raises(UntrustedDataError) as refused:
        open_log(path)
    assert refused.value.check == "tile"
    assert name in refused.value.message


def settle(path):
    """Let the log forget its tail, as it does every 16,384 entries."""
    with open_log(path) as writer:
        writer._new_tail()


def test_only_the_files_of_one_entry_changed(path):
    settle(path)
    name = tlog.entries_path(1)
    data = bytearray((path / name).read_bytes())
    data[1000] ^= 1
    (path / name).write_bytes(data)
    assert fault(path) == "entries"
    with pytest.raises(UntrustedDataError):
        list(Reader(LogFiles(path), PRIVATE).events(256, 300))


def test_a_stolen_log_key_forges_no_readable_entry_of_the_past(path):
    """Epoch keys are gone: an old entry can be destroyed or moved, not replaced by another that decrypts."""
    entries = entries_of(path)
    forge(path, reorder(entries), key=identity.load(LogFiles(path)).key)
    with pytest.raises(UntrustedDataError) as refused:
        list(Reader(LogFiles(path), PRIVATE).events(295, 310))
    assert refused.value.check == "record-tag"
    forge(path, entries, key=identity.load(LogFiles(path)).key)  # control: the forger's work is readable as such
    assert len(list(Reader(LogFiles(path), PRIVATE).events(295, 310))) == 15


# --- going back in time -----------------------------------------------------------------------------------------------


def test_an_old_snapshot_passes_locally_and_fails_against_a_kept_checkpoint(original, tmp_path):
    shutil.copytree(original.with_name("snapshot"), tmp_path / "journal")
    newer = (original / "checkpoint").read_bytes()
    assert fault(tmp_path / "journal") is None
    assert fault(tmp_path / "journal", against=newer) == "against-size"
    assert fault(original, against=newer) is None


def test_what_is_newer_than_the_kept_checkpoint_can_be_rewritten_by_a_key_thief(path, kept):
    """The exposure window, as documented: from the last checkpoint kept elsewhere until now."""
    forge(path, edit(entries_of(path), at=650), key=identity.load(LogFiles(path)).key)
    assert fault(path) is None
    assert fault(path, against=kept) is None
    forge(path, edit(entries_of(path), at=KEPT_AT - 1), key=identity.load(LogFiles(path)).key)
    assert fault(path, against=kept) == "against-root"


def test_an_old_checkpoint_alone_is_refused(path, original, kept):
    (path / "checkpoint").write_bytes(kept)
    with pytest.raises(UntrustedDataError) as refused:
        open_log(path)
    assert refused.value.check == "checkpoint-old"
    (path / "checkpoint").write_bytes((original / "checkpoint").read_bytes())
    open_log(path).close()  # control


# --- single files -----------------------------------------------------------------------------------------------------


def ruin(file, how):
    data = file.read_bytes()
    if how == "delete":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_no_file_of_the_log_can_be_ruined_unseen(path, how):
    size = verify(LogFiles(path)).size
    current = {tlog.tile_path(*part) for part in tlog.partial_tiles(size)} | {tlog.entries_path(2, size - 512)}
    unseen = []
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        stale = ".p/" in name and name not in current  # of checkpoints that were replaced since
        if not file.is_file() or stale or name == "lock":
            continue
        saved = file.read_bytes()
        ruin(file, how)
        try:
            if fault(path) is None:
                unseen.append(name)
        finally:
            file.write_bytes(saved)
    assert unseen == []
    assert fault(path) is None  # control: put back, it passes


def test_every_flipped_byte_of_the_tail_is_refused_or_harmless(path, original):
    """A changed tail is refused, or loses only what nobody was ever shown a checkpoint of."""
    whole = (original / "tail").read_bytes()
    published = tlog.open_checkpoint(
        (original / "checkpoint").read_bytes(), [identity.load_verifier(LogFiles(original))]
    ).size
    me = identity.load(LogFiles(original))
    dice = random.Random(3)
    with me.tail_key() as key:
        for at in [*range(200), *(dice.randrange(len(whole)) for _ in range(300))]:
            bad = whole[:at] + bytes([whole[at] ^ (1 << dice.randrange(8))]) + whole[at + 1 :]
            try:
                found = tail.scan(bad, key)
            except UntrustedDataError:
                continue
            assert found.size < published  # opening then fails with entries-missing


def test_control_without_the_mac_a_changed_tail_reads_as_if_nothing_happened(original):
    whole = bytearray((original / "tail").read_bytes())
    whole[-1] ^= 1
    changed = tail.scan(bytes(whole), None)
    me = identity.load(LogFiles(original))
    with me.tail_key() as key:
        assert changed.size == tail.scan((original / "tail").read_bytes(), key).size
        assert tail.scan(bytes(whole), key).size < changed.size


@pytest.mark.parametrize("name", ["tail", "checkpoint", "log.key", "log.vkey", "tile/0/000", "tile/entries/001"])
def test_the_writer_refuses_to_go_on_behind_a_missing_file(original, tmp_path, name):
    path = tmp_path / "journal"
    shutil.copytree(original, path)
    settle(path)
    (path / name).unlink()
    before = sorted(file.name for file in path.rglob("*"))
    with pytest.raises(UntrustedDataError):
        open_log(path)
    assert sorted(file.name for file in path.rglob("*")) == before


def test_the_whole_log_replaced_by_another_devices_fails_with_a_pinned_key(path, tmp_path, original):
    pinned = identity.load_verifier(LogFiles(original))
    other = tmp_path / "other"
    other.mkdir()
    JournalWriter(other, home_id="abc", owner_public=PUBLIC, clock=Clock()).close()
    assert fault(other) is None
    assert fault(other, verifier=pinned) == "checkpoint-signature"


def test_an_entry_moved_to_another_place_does_not_decrypt(original):
    reader = Reader(LogFiles(original), PRIVATE)
    raw = entries_of(original)
    key = reader._keys.key_for(0)
    origin = "casemate/abc"
    good = entry.parse_entry(raw[10], at=10)
    assert entry.open_event(key, good, origin)
    moved = entry.parse_entry(readdress(raw[10], 11), at=11)
    with pytest.raises(UntrustedDataError):
        entry.open_event(key, moved, origin)
    with pytest.raises(UntrustedDataError):
        entry.open_event(key, good, "casemate/other")
    with pytest.raises(UntrustedDataError):
        entry.parse_entry(raw[10], at=11)
