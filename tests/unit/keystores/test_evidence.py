"""The assurance level follows evidence: owner, mode and place of the secret, not what it says about itself."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from casemate import keystores
from casemate.keystores.evidence import judge_stored_secret
from support import homes


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home" / "keystore").mkdir(parents=True)
    return tmp_path / "home"


def facts(home, *, owner_offset=0, mode=0o600):
    return SimpleNamespace(st_uid=(home / "keystore").stat().st_uid + owner_offset, st_mode=0o100000 | mode)


def test_another_owner_and_another_directory_is_l1(home, tmp_path):
    found = judge_stored_secret("key file", facts(home, owner_offset=1), tmp_path / "keys" / "k", home)
    assert found.level == "L1"


@pytest.mark.parametrize(
    ("weakness", "place", "reason"),
    [
        ({"owner_offset": 0}, "keys/k", "same owner"),
        ({"owner_offset": 1, "mode": 0o640}, "keys/k", "others than its owner"),
        ({"owner_offset": 1, "mode": 0o604}, "keys/k", "others than its owner"),
        ({"owner_offset": 1}, "home/k", "inside the home"),
    ],
)
def test_any_weakness_is_l0_and_named(home, tmp_path, weakness, place, reason):
    found = judge_stored_secret("key file", facts(home, **weakness), tmp_path / place, home)
    assert found.level == "L0"
    assert any(reason in said for said in found.reasons)


def test_a_link_out_of_the_home_and_back_in_is_seen_through(home, tmp_path):
    (home / "k").write_text("x")
    (tmp_path / "link").symlink_to(home / "k")
    assert judge_stored_secret("key file", facts(home, owner_offset=1), tmp_path / "link", home).level == "L0"


def test_a_key_file_of_the_same_user_is_l0(tmp_path, monkeypatch):
    bench = homes.make(tmp_path, monkeypatch)
    owner = bench.home.keystore.stat()
    os.chown(bench.keyfile, owner.st_uid, owner.st_gid)
    assert keystores.describe(bench.home, bench.sources).level == "L0"
    with bench.unlock() as keystore:
        assert keystore.assurance.level == "L0"


@pytest.mark.root
def test_a_key_file_of_root_for_the_vaults_models_is_l1(tmp_path, monkeypatch):
    bench = homes.make(tmp_path, monkeypatch)
    assert bench.home.keystore.stat().st_uid != 0
    assert keystores.describe(bench.home, bench.sources).level == "L1"


def test_a_key_file_that_cannot_be_seen_is_not_given_credit(tmp_path, monkeypatch):
    bench = homes.make(tmp_path, monkeypatch)
    bench.keyfile.unlink()
    assert keystores.describe(bench.home, bench.sources).level == "L0"


def test_no_keystore_of_this_version_claims_more_than_l1(tmp_path, monkeypatch):
    bench = homes.make(tmp_path, monkeypatch)
    for environ in ({}, bench.environ, {"CREDENTIALS_DIRECTORY": str(tmp_path)}):
        assert keystores.describe(bench.home, keystores.from_environment(bench.home, environ)).level in {"L0", "L1"}
