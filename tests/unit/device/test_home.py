"""The home tree: made once, completed after a crash, refused when newer, locked by one device."""

from __future__ import annotations

import json
import os
import stat

import pytest

from casemate.device.home import Home, write_atomic
from casemate.errors import BusyError, ConfigError, NotFoundError, OperationError


def test_create_is_private_and_can_be_repeated(home_path):
    home = Home(home_path).create()
    first = home.id
    assert Home(home_path).create().id == first
    for part in ("keystore", "models", "journal", "run"):
        assert stat.S_IMODE((home_path / part).stat().st_mode) == 0o700
    assert stat.S_IMODE((home_path / "apps").stat().st_mode) == (0o750 if os.geteuid() == 0 else 0o700)


def test_a_newer_or_damaged_home_is_refused(home_path):
    Home(home_path).create()
    (home_path / "home.json").write_text(json.dumps({"schema": 99, "id": "x"}))
    with pytest.raises(ConfigError, match="schema 99"):
        Home(home_path).open()
    (home_path / "home.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        Home(home_path).open()


def test_no_home_says_how_to_make_one(home_path):
    with pytest.raises(NotFoundError) as caught:
        Home(home_path).open()
    assert "casemate up" in caught.value.hint


def test_only_one_device_per_home(home_path):
    home = Home(home_path).create()
    with home.lock():
        with pytest.raises(BusyError) as caught, Home(home_path).lock():
            pass
        assert str(os.getpid()) in caught.value.message
    with home.lock():
        pass


def test_a_failed_write_leaves_the_old_bytes_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full_disk(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(OperationError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
