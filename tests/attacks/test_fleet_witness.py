"""Somebody with the device in hand cuts its journal back, or rewrites it, to hide what happened.

A real device and a real fleet server. The control: the same log, put back, is believed by the device that has it.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from support import device
from support.fleet import running, until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def server(tmp_path):
    tmp_path.chmod(0o755)
    with running(tmp_path / "fleet") as started:
        yield started


def enrol(server, tmp_path: Path) -> dict[str, str]:
    environ = device.environment(tmp_path / "home")
    (tmp_path / "token").write_text(server.token("till-1"))
    device.cli(environ, "device", "enrol", server.addresses["enrol"], "--token-file", str(tmp_path / "token"))
    return environ


def witnessed(up: device.Device) -> int:
    return (up.refresh()["fleet"] or {}).get("witnessed", 0)


def alerts(server) -> list[str]:
    """Return what the fleet says about journals, from its database: SQLite, as a small fleet has it."""
    with contextlib.closing(sqlite3.connect(f"file:{server.directory / 'fleet.db'}?mode=ro", uri=True)) as database:
        return [detail for (detail,) in database.execute("SELECT detail FROM alert WHERE kind = 'journal'")]


def test_a_journal_that_was_cut_back_is_believed_at_home_and_caught_by_the_fleet(server, tmp_path):
    environ = enrol(server, tmp_path)
    journal, kept = tmp_path / "home" / "journal", tmp_path / "kept"
    with device.running(tmp_path / "home", ready=False) as up:
        until(lambda: witnessed(up))
        assert device.cli(environ, "journal", "verify").stdout.count("witnessed by the fleet") == 1
    shutil.copytree(journal, kept, symlinks=True)
    with device.running(tmp_path / "home", ready=False) as up:  # more happens, and the fleet sees it
        seen = until(lambda: witnessed(up))
    owner = journal.stat()
    shutil.rmtree(journal)
    shutil.copytree(kept, journal, symlinks=True)
    for path in (journal, *journal.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)
    assert device.cli(environ, "journal", "verify").returncode == 0  # control: alone, the device believes it
    assert alerts(server) == []
    with device.running(tmp_path / "home", ready=False) as up:
        until(lambda: "refused" in str((up.refresh()["fleet"] or {}).get("witness")))
    found = alerts(server)
    assert any("cut back" in fault or "rewritten" in fault for fault in found), (seen, found)


def test_a_device_notices_itself_when_only_the_log_and_not_the_witnessed_checkpoint_is_put_back(server, tmp_path):
    environ = enrol(server, tmp_path)
    journal, kept = tmp_path / "home" / "journal", tmp_path / "kept"
    with device.running(tmp_path / "home", ready=False) as up:
        until(lambda: witnessed(up))
    shutil.copytree(journal, kept, symlinks=True)
    with device.running(tmp_path / "home", ready=False) as up:
        until(lambda: witnessed(up))
    newest = (journal / "checkpoint.witnessed").read_bytes()
    shutil.rmtree(journal)
    shutil.copytree(kept, journal, symlinks=True)
    assert device.cli(environ, "journal", "verify").returncode == 0
    (journal / "checkpoint.witnessed").write_bytes(newest)
    done = device.cli(environ, "journal", "verify", check=False)
    assert done.returncode == 10
