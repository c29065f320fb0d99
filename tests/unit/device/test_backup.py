"""Saving and restoring a home: everything comes back, or nothing is left; while a journal is written, too."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from casemate import keystores
from casemate.crypto.secret import Secret
from casemate.device import backup, models, restore
from casemate.device.apps import AppStore
from casemate.device.home import Home
from casemate.device.journal import LogFiles, Reader, append_offline, verify
from casemate.device.models import no_progress
from casemate.device.ownership import hand_over
from casemate.errors import (
    BusyError,
    ConfigError,
    NotAuthorisedError,
    NotFoundError,
    OperationError,
    UntrustedDataError,
)
from casemate.formats import archive, event
from casemate.keystores.recovery import parse_code
from support import gguf_files, homes


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Return a home with a keystore and its recovery code, a model, an app and a few journal entries."""
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)
    made = homes.make(tmp_path, monkeypatch)
    made.add()
    AppStore(made.home).add("kiosk")
    codes: list[str] = []
    with made.unlock() as keystore:
        keystores.add_recovery(keystore, codes.append).wipe()
    made.code = codes[0]
    append_offline(made.home, [event.recovery_added(now=1.0)] * 3)
    return made


def save(bench, name="x.tar", **options):
    target = bench.home.path.parent / name
    return backup.save(bench.home, target, bench.sources, progress=no_progress, **options)


def bring_back(file, home_path, **options):
    return restore.restore(file, Home(home_path), progress=no_progress, **options)


def contents(home):
    """Return every file of a home by path, without what is not saved."""
    found = {}
    for part in ("home.json", "models", "apps", "journal", "keystore"):
        top = home / part
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and path.name not in {"lock", ".lock"}:
                found[str(path.relative_to(home))] = path.read_bytes()
    return found


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def recovered(bench, home, monkeypatch):
    """Give a restored home a new key file, as `keystore rotate --recovery --to keyfile` does."""
    way = keystores.from_environment(home, {"CASEMATE_KEYFILE": str(bench.home.path.parent / "new.key")})
    opened = keystores.unlock(home, keystores.from_environment(home, {}, recovery=parse_code(bench.code)))
    with opened:
        begun = keystores.begin_rotation(opened, way.keyfile_keystore(), lambda _code: None)
        begun.wipe()
    return way


# --- there and back ---------------------------------------------------------------------------------------------------


def test_everything_comes_back_but_the_ways_in(bench, tmp_path):
    before = contents(bench.home.path)
    saved = save(bench)
    assert saved.keys == "recovery"
    assert saved.models == ("tiny",)
    assert saved.sha256 == hashlib.sha256(saved.file.read_bytes()).hexdigest()
    assert os.stat(saved.file).st_mode & 0o777 == 0o600
    restored = bring_back(saved.file, tmp_path / "back", expect=saved.sha256)
    after = contents(tmp_path / "back")
    assert restored.id == bench.home.id
    keystore = after.pop("keystore/keystore.json")
    before.pop("keystore/keystore.json")
    changing = {name for name in before if name.startswith(("journal/tail", "journal/checkpoint", "journal/tile"))}
    assert {name: data for name, data in before.items() if name not in changing}.items() <= after.items()
    assert [slot["type"] for slot in json.loads(keystore)["slots"]] == ["recovery"]
    assert verify(LogFiles(tmp_path / "back/journal")).size > 3


def test_the_copy_opens_with_the_recovery_code_and_with_nothing_else(bench, tmp_path, monkeypatch):
    bring_back(save(bench).file, tmp_path / "back")
    home = Home(tmp_path / "back").open()
    with pytest.raises(NotAuthorisedError, match="recovery code") as caught:
        keystores.unlock(home, keystores.from_environment(home, bench.environ))
    assert "keystore rotate --recovery" in caught.value.hint
    with pytest.raises(NotAuthorisedError):
        keystores.unlock(home, keystores.from_environment(home, {}, recovery=Secret.random()))
    assert keystores.describe(home, keystores.from_environment(home, {})).kind == "recovery"
    sources = recovered(bench, home, monkeypatch)
    assert models.verify_model(home, sources, "tiny") == ""


def test_control_the_original_opens_with_its_key_file(bench):
    bench.unlock().wipe()


def test_the_restoration_and_the_backup_are_journaled(bench, tmp_path):
    saved = save(bench)
    assert bring_back(saved.file, tmp_path / "back").journal == ""
    with bench.unlock() as keystore, keystore.owner_private() as private:
        said = [
            shown.fields()["metadata"]["event_code"] for shown in Reader(LogFiles(bench.home.journal), private).events()
        ]
        came = [
            shown.fields()["metadata"]["event_code"]
            for shown in Reader(LogFiles(tmp_path / "back/journal"), private).events()
        ]
    assert said[-1] == "backup_made"
    assert came[-1] == "home_restored"


def test_a_plain_tar_reads_the_archive(bench):
    with tarfile.open(save(bench).file) as theirs:
        names = theirs.getnames()
        manifest = json.load(theirs.extractfile("manifest.json"))
        for row in manifest["files"]:
            data = theirs.extractfile(row["path"]).read()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (row["size"], row["sha256"])
    assert names[0] == "casemate-backup.json"
    assert names[-1] == "manifest.json"
    assert not any(name.startswith("run/") for name in names)


def test_no_plain_weights_and_no_other_way_in_are_in_the_archive(bench):
    data = save(bench).file.read_bytes()
    plain = gguf_files.tiny()
    assert plain[:64] not in data
    assert b"keyfile" not in data
    assert bench.keyfile.read_bytes().split()[2] not in data


def test_without_a_recovery_code_there_is_no_backup_with_keys(tmp_path, monkeypatch):
    made = homes.make(tmp_path, monkeypatch)
    with pytest.raises(NotFoundError, match="nobody could open") as caught:
        save(made)
    assert "--without-keys" in caught.value.hint
    assert not (tmp_path / "x.tar").exists()
    assert leftovers(tmp_path) == []


def test_without_keys_the_containers_come_back_locked(bench, tmp_path):
    saved = backup.save(bench.home, tmp_path / "x.tar", None, progress=no_progress)
    assert saved.keys == "none"
    restored = bring_back(saved.file, tmp_path / "back")
    assert "keystore" in restored.journal
    home = Home(tmp_path / "back").open()
    with pytest.raises(NotFoundError):
        keystores.read_document(home)
    shutil.copy(bench.home.keystore / "keystore.json", home.keystore)
    assert models.verify_model(home, keystores.from_environment(home, bench.environ), "tiny") == ""


def test_an_unfinished_rotation_survives(bench, tmp_path):
    way = keystores.from_environment(bench.home, {"CASEMATE_KEYFILE": str(tmp_path / "second.key")})
    codes = []
    with bench.unlock() as keystore:
        keystores.begin_rotation(keystore, way.keyfile_keystore(), codes.append).wipe()
    backup.save(bench.home, tmp_path / "x.tar", way, progress=no_progress)
    bring_back(tmp_path / "x.tar", tmp_path / "back")
    home = Home(tmp_path / "back").open()
    with keystores.unlock(home, keystores.from_environment(home, {}, recovery=parse_code(codes[0]))) as opened:
        assert opened.previous is not None


# --- what is refused when saving --------------------------------------------------------------------------------------


def test_an_existing_file_is_not_replaced(bench, tmp_path):
    (tmp_path / "x.tar").write_text("older backup")
    with pytest.raises(BusyError, match="there already"):
        save(bench)
    assert (tmp_path / "x.tar").read_text() == "older backup"


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite", "remove"])
def test_a_container_that_changes_meanwhile_is_noticed(bench, tmp_path, monkeypatch, change):
    container = homes.container_of(bench)
    real = backup._list

    def listing(home):
        items = real(home)
        data = container.read_bytes()
        match change:
            case "grow":
                container.write_bytes(data + b"x")
            case "shrink":
                container.write_bytes(data[:-1])
            case "rewrite":
                container.write_bytes(data[:-1] + b"x")
            case "remove":
                container.unlink()
        return items

    monkeypatch.setattr(backup, "_list", listing)
    with pytest.raises(BusyError, match=r"tiny\.cmodel changed"):
        save(bench)
    assert not (tmp_path / "x.tar").exists()
    assert leftovers(tmp_path) == []


def test_a_full_disk_leaves_nothing(bench, tmp_path, monkeypatch):
    def full(_self, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup._Writer, "_put", full)
    with pytest.raises(OperationError, match="No space left"):
        save(bench)
    assert not (tmp_path / "x.tar").exists()
    assert leftovers(tmp_path) == []


def test_a_wrong_secret_saves_nothing(bench, tmp_path):
    with pytest.raises(NotAuthorisedError):
        backup.save(
            bench.home,
            tmp_path / "x.tar",
            keystores.from_environment(bench.home, {"CASEMATE_KEYFILE": str(tmp_path / "none")}),
            progress=no_progress,
        )
    assert not (tmp_path / "x.tar").exists()


# --- one moment -------------------------------------------------------------------------------------------------------


WRITER = """
import sys, time
from pathlib import Path
from casemate.device.home import Home
from casemate.device.journal import open_writer
from casemate.formats import event
with open_writer(Home(Path(sys.argv[1])).open()) as writer:
    while True:
        writer.record([event.recovery_added(now=1.0)] * int(sys.argv[2]), role="cli")
        writer.publish()
        print("written", flush=True)
        time.sleep(0.001)
"""


@contextlib.contextmanager
def being_written(home, burst):
    """Have another process publish *burst* entries at a time, all the time."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(home.path), str(burst)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"written\n"
        reading = threading.Thread(target=process.stdout.read)
        reading.start()
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        reading.join()
        process.stdout.close()


@pytest.mark.parametrize("burst", [1, 97])
def test_copies_taken_while_the_journal_is_written_are_whole_and_can_go_on(bench, tmp_path, burst):
    """A writer publishes all the time, across bundle borders; each copy verifies and takes new entries."""
    sizes = []
    with being_written(bench.home, burst):
        for number in range(5):
            place = tmp_path / f"copy{number}"
            for item in backup._list(bench.home):
                target = place / item.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(item.data if item.data is not None else item.place.read_bytes())
            sizes.append(verify(LogFiles(place / "journal")).size)
            shutil.copytree(bench.home.keystore, place / "keystore")
            copy = Home(place).create()
            hand_over(copy)
            append_offline(copy, [event.home_restored(now=2.0)] * 300)
            assert verify(LogFiles(copy.journal)).size >= sizes[-1] + 300
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


class Everything:
    def __contains__(self, _name):
        return True


@pytest.mark.parametrize("careful", [True, False], ids=["careful", "control"])
def test_bundles_of_a_later_moment_stay_behind(bench, tmp_path, monkeypatch, careful):
    """The journal passes a bundle's border between its head and the rest: the copy is of the head's moment alone."""
    real = backup.journal_head

    def head_then_more(files):
        head = real(files)
        append_offline(bench.home, [event.recovery_added(now=1.0)] * 700)
        return head

    monkeypatch.setattr(backup, "journal_head", head_then_more)
    if not careful:
        monkeypatch.setattr(backup, "_finished_tiles", lambda _size: Everything())
    bring_back(save(bench).file, tmp_path / "back")
    assert (tmp_path / "back/journal/tile/entries/000").exists() is not careful
    assert verify(LogFiles(tmp_path / "back/journal")).size < 100


def test_control_a_careless_copy_of_a_journal_that_moves_on_is_refused(bench, tmp_path):
    """Tail first, checkpoint later: the checkpoint covers entries that the copy does not have."""
    files = LogFiles(bench.home.journal)
    careless = tmp_path / "careless"
    shutil.copytree(bench.home.journal, careless)
    append_offline(bench.home, [event.recovery_added(now=1.0)])
    shutil.copy(bench.home.journal / "checkpoint", careless)
    assert verify(files)
    with pytest.raises(UntrustedDataError):
        verify(LogFiles(careless))


# --- what is refused when restoring -----------------------------------------------------------------------------------


def rebuilt(file, change):
    """Return an archive whose members *change* has edited: a list of (path, bytes), header and manifest remade."""
    with tarfile.open(file) as theirs:
        members = [(item.name, theirs.extractfile(item).read()) for item in theirs][:-1]
    change(members)
    out, rows = io.BytesIO(), []
    created = json.loads(members[0][1])["created"]
    for path, data in members:
        out.write(archive.member_block(path, len(data), created) + data + bytes(archive.padding(len(data))))
        rows.append(archive.Row(path, len(data), hashlib.sha256(data).hexdigest()))
    manifest = archive.encode(archive.Manifest(1, tuple(rows)))
    out.write(archive.member_block("manifest.json", len(manifest), created) + manifest)
    out.write(bytes(archive.padding(len(manifest))) + archive.END)
    return out.getvalue()


def recount(members):
    header = json.loads(members[0][1])
    header["files"], header["bytes"] = len(members) - 1, sum(len(data) for _, data in members[1:])
    members[0] = (members[0][0], json.dumps(header).encode())


def refused(tmp_path, data):
    """Restore *data*, which must fail and leave nothing; return which check said no."""
    file = tmp_path / "hostile.tar"
    file.write_bytes(data)
    with pytest.raises(UntrustedDataError) as caught:
        bring_back(file, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert leftovers(tmp_path) == []
    return caught.value.check


def test_control_a_rebuilt_archive_is_accepted(bench, tmp_path):
    (tmp_path / "again.tar").write_bytes(rebuilt(save(bench).file, lambda members: None))
    bring_back(tmp_path / "again.tar", tmp_path / "back")


def test_every_flipped_byte_is_found(bench, tmp_path):
    data = save(bench).file.read_bytes()
    for at in range(0, len(data), 211):
        changed = bytearray(data)
        changed[at] ^= 0x10
        assert refused(tmp_path, bytes(changed))


def test_every_cut_is_found(bench, tmp_path):
    data = save(bench).file.read_bytes()
    for length in {0, 1, 511, 512, 1024, len(data) // 2, len(data) - 1024, len(data) - 1}:
        assert refused(tmp_path, data[:length]) in {"archive-short", "archive-header", "archive-manifest"}
    assert refused(tmp_path, data + b"\0") == "archive-end"


def put(path, data=b"x"):
    def change(members):
        members.append((path, data))
        recount(members)

    return change


def drop(path):
    def change(members):
        members[:] = [member for member in members if member[0] != path]
        recount(members)

    return change


def twice(members):
    members.append(members[-1])
    recount(members)


def uncounted(members):
    members.append(("apps/evil.toml", b"x"))


def other_home(members):
    members[:] = [(p, d.replace(b'"id":"', b'"id":"f') if p == "home.json" else d) for p, d in members]
    recount(members)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (put("run/agent.sock"), "archive-path"),
        (put("../escape"), "archive-path"),
        (put("apps/../../escape.toml"), "archive-path"),
        (put("models/.hidden.cmodel"), "archive-path"),
        (twice, "archive-size"),
        (uncounted, "archive-manifest"),
        (drop("home.json"), "archive-content"),
        (drop("keystore/keystore.json"), "archive-content"),
        (other_home, "archive-content"),
    ],
)
def test_an_archive_with_honest_digests_and_wrong_content_is_refused(bench, tmp_path, change, check):
    assert refused(tmp_path, rebuilt(save(bench).file, change)) == check


def test_a_manifest_that_says_other_digests_is_refused(bench, tmp_path):
    file = save(bench).file
    data = file.read_bytes()
    digest = hashlib.sha256((bench.home.path / "home.json").read_bytes()).hexdigest().encode()
    assert refused(tmp_path, data.replace(digest, digest[::-1])) == "archive-digest"


def test_a_block_that_claims_more_than_the_header_stops_before_it_is_written(bench, tmp_path, monkeypatch):
    """A size of a terabyte is refused when it is announced, not when the disk is full."""
    members = []
    data = rebuilt(save(bench).file, members.extend)
    first, second = (len(d) + archive.padding(len(d)) + archive.BLOCK for _, d in members[:2])
    created = json.loads(members[0][1])["created"]
    bomb = archive.member_block("models/bomb.cmodel", 1 << 40, created)
    written = []
    monkeypatch.setattr(restore, "_write", lambda path, pieces, advance: written.append(path))
    assert refused(tmp_path, data[:first] + bomb + bytes(second)) == "archive-size"
    assert written == []


def test_the_digest_that_was_kept_is_compared(bench, tmp_path):
    saved = save(bench)
    with pytest.raises(UntrustedDataError) as caught:
        bring_back(saved.file, tmp_path / "back", expect="0" * 64)
    assert caught.value.check == "archive-expected"
    assert not (tmp_path / "back").exists()


def test_a_home_that_is_there_is_never_replaced(bench, tmp_path):
    saved = save(bench)
    before = contents(bench.home.path)
    with pytest.raises(BusyError, match="there already"):
        bring_back(saved.file, bench.home.path)
    assert contents(bench.home.path) == before
    (tmp_path / "empty").mkdir()
    assert bring_back(saved.file, tmp_path / "empty").files == saved.files


def test_a_backup_of_a_newer_version_is_refused(bench, tmp_path):
    def newer(members):
        header = json.loads(members[0][1])
        members[0] = (members[0][0], json.dumps({**header, "home_schema": 9}).encode())

    (tmp_path / "newer.tar").write_bytes(rebuilt(save(bench).file, newer))
    with pytest.raises(ConfigError, match="schema 9"):
        bring_back(tmp_path / "newer.tar", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(bench, tmp_path, monkeypatch):
    saved = save(bench)
    monkeypatch.setattr(restore.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1, 1, 1))
    with pytest.raises(OperationError, match="are free"):
        bring_back(saved.file, tmp_path / "back")
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(bench, tmp_path, monkeypatch):
    saved = save(bench)

    def full(_path, _pieces, _advance):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(restore, "_write", full)
    with pytest.raises(OperationError, match="No space left"):
        bring_back(saved.file, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert leftovers(tmp_path) == []


def test_a_missing_file_and_a_directory_are_told(tmp_path):
    for path in (tmp_path / "none.tar", tmp_path):
        with pytest.raises(NotFoundError):
            bring_back(path, tmp_path / "back")


def test_a_pipe_is_read_once(bench, tmp_path):
    """The archive may come from a pipe: nothing seeks."""
    saved = save(bench)
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    feeding = threading.Thread(target=lambda: fifo.write_bytes(saved.file.read_bytes()))
    feeding.start()
    assert bring_back(fifo, tmp_path / "back").files == saved.files
    feeding.join()


def test_other_programs_files_are_not_backups(tmp_path):
    assert refused(tmp_path, Path("/bin/true").read_bytes()) == "archive-header"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as theirs:
        theirs.addfile(tarfile.TarInfo("casemate-backup.json"))
    assert refused(tmp_path, out.getvalue()) == "archive-header"
