"""The directory: whose files they are, what a failure leaves behind, and a disk that is really full."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys

import pytest

from casemate.crypto import hpke
from casemate.device.journal import JournalWriter, LogFiles
from casemate.device.ownership import rights_of_owner
from casemate.errors import BusyError, NotFoundError, OperationError, UntrustedDataError

_, PUBLIC = hpke.generate()


class Clock:
    def wall(self):
        return 1.0

    def monotonic(self):
        return 1.0


def test_a_write_replaces_and_a_failed_one_leaves_the_old(tmp_path, monkeypatch):
    files = LogFiles(tmp_path)
    files.write("a/b/c", b"one", sync=True)
    assert files.read("a/b/c") == b"one"

    def full(_fd, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OperationError, match="No space left"):
        files.write("a/b/c", b"two")
    monkeypatch.undo()
    assert files.read("a/b/c") == b"one"
    assert files.names("a/b") == ["c"]


def test_private_files_are_private_even_under_a_loose_umask(tmp_path):
    before = os.umask(0)
    try:
        with JournalWriter(tmp_path, home_id="abc", owner_public=PUBLIC, clock=Clock()):
            pass
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("log.key", "tail", "lock", "checkpoint")}
    assert modes == {"log.key": 0o600, "tail": 0o600, "lock": 0o600, "checkpoint": 0o644}


def test_the_lock_is_one_and_needs_a_directory(tmp_path):
    files = LogFiles(tmp_path)
    with files.lock(), pytest.raises(BusyError), LogFiles(tmp_path).lock():
        pass
    with files.lock():
        pass
    with pytest.raises(NotFoundError), LogFiles(tmp_path / "none").lock():
        pass


def test_reading_tells_missing_from_forbidden(tmp_path):
    files = LogFiles(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.read("none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OperationError):
        files.read("folder")
    assert (files.size("none"), files.names("none"), files.exists("none")) == (-1, [], False)


def test_a_file_nobody_could_have_written_is_refused(tmp_path):
    with (tmp_path / "checkpoint").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UntrustedDataError, match="larger than anything"):
        LogFiles(tmp_path).read("checkpoint")


@pytest.mark.root
def test_what_root_writes_belongs_to_the_journals_own_user(tmp_path):
    os.chown(tmp_path, 61904, 61904)
    with (
        rights_of_owner(tmp_path),
        JournalWriter(tmp_path, home_id="abc", owner_public=PUBLIC, clock=Clock()) as writer,
    ):
        writer.append([b"x"] * 600)
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in tmp_path.rglob("*")}
    assert owners == {(61904, 61904)}


FILL = """
import sys
from pathlib import Path
from casemate.device.journal import JournalWriter, LogFiles, verify
from casemate.errors import OperationError

class Clock:
    def wall(self): return 1.0
    def monotonic(self): return 1.0

place = Path(sys.argv[1])
(place / "ballast").write_bytes(bytes(200_000))
(place / "journal").mkdir()
writer = JournalWriter(place / "journal", home_id="abc", owner_public=bytes(31) + b"\\x09", clock=Clock())
kept, refused, unpublished = writer.size, 0, 0
while refused < 3:
    try:
        writer.append([bytes(400)] * 16)
        kept += 16
    except OperationError as error:
        assert "No space left" in error.message, error.message
        refused += 1
    try:
        writer.publish()
    except OperationError:
        unpublished += 1
assert unpublished
(place / "ballast").unlink()
writer.append([b"after"])
writer.close()
checked = verify(LogFiles(place / "journal"))
assert (checked.size, checked.pending) == (kept + 1, 0), (checked, kept)
print("kept", kept)
"""


@pytest.mark.root
def test_a_really_full_disk(tmp_path):
    """A file system of one megabyte, in a mount namespace of its own."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    (tmp_path / "fill.py").write_text(FILL)
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=1m none "$1/disk" && exec "$2" "$1/fill.py" "$1/disk"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 100


def test_the_journal_process_loads_no_keys_and_no_servers():
    """Its privileges are few; so is its code."""
    code = "import sys, casemate.device.journal.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    unwanted = ("casemate.keystores", "casemate.device.vault", "casemate.device.gateway", "casemate.guard", "click")
    unwanted += ("starlette", "uvicorn", "xllamacpp", "numpy", "tarfile", "http", "urllib.request")
    assert [name for name in loaded if name.startswith(unwanted)] == []
