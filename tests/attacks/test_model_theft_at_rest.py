"""A thief copies the whole home off the disk and looks for the weights, the keys of models and the keys of apps.

The weights carry canaries. The control puts the plain file where the container is: there the same search finds them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from casemate.crypto.secret import Secret
from casemate.device import containers, models, transfer
from casemate.device.apps import AppStore
from support import gguf_files, homes

CANARY = os.urandom(64)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)
    return homes.make(tmp_path, monkeypatch)


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.gguf"
    gguf_files.write_sized(path, 3 << 20, canary=CANARY)
    return path


def stolen(place: Path, needle: bytes) -> list[str]:
    """Search every file below *place*, whole and in every 16-byte piece of the needle."""
    pieces = {needle[at : at + 16] for at in range(0, len(needle) - 15, 16)}
    return [str(path) for path in place.rglob("*") if path.is_file() and any(p in path.read_bytes() for p in pieces)]


def test_no_piece_of_the_weights_is_in_the_home(bench, plain):
    models.add_model(bench.home, bench.sources, plain, name="big")
    assert bench.verify("big") == ""
    assert stolen(bench.home.path, CANARY) == []


def test_control_the_search_finds_a_plain_copy(bench, plain):
    (bench.home.models / "big.cmodel").write_bytes(plain.read_bytes())
    assert stolen(bench.home.path, CANARY) != []


def test_no_piece_of_the_weights_is_in_an_export(bench, plain, tmp_path):
    """There is no plaintext export: for a key or a passphrase, the file holds ciphertext only."""
    models.add_model(bench.home, bench.sources, plain, name="big")
    out = tmp_path / "out"
    out.mkdir()
    transfer.export_model(bench.home, bench.sources, "big", out / "big.cmodel", passphrase=Secret(b"correct horse"))
    assert (out / "big.cmodel").stat().st_size > 3 << 20
    assert stolen(out, CANARY) == []


def test_a_failed_add_leaves_no_piece_either(bench, plain, monkeypatch):
    def fails(self, area):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(containers.ContainerWriter, "finish", fails)
    with pytest.raises(Exception, match="No space"):
        models.add_model(bench.home, bench.sources, plain, name="big")
    assert stolen(bench.home.path, CANARY) == []
    assert list(bench.home.models.iterdir()) == []


def test_the_data_key_is_nowhere_unwrapped(bench):
    bench.add()
    with bench.unlock() as keystore, containers.open_container(homes.container_of(bench)) as opened:
        data_key = containers.unwrap_for_home(opened.container, keystore).reveal()
        kek = keystore.kek.reveal()
    for key in (data_key, kek):
        assert stolen(bench.home.path, key) == []
        assert stolen(bench.keyfile.parent, key) == []


def test_the_home_alone_opens_nothing(bench, tmp_path, monkeypatch):
    """The disk without the key file: everything needed to open a model but one secret."""
    bench.add()
    bench.keyfile.unlink()
    with pytest.raises(Exception, match="no key file"):
        bench.verify()


def test_keys_of_apps_are_stored_as_hashes(bench):
    key = AppStore(bench.home).add("till")
    assert stolen(bench.home.path, key.encode()) == []
    assert stolen(bench.home.path, key.rpartition("_")[2].encode()) == []


def test_containers_and_keystore_are_for_one_uid_only(bench):
    bench.add()
    for path in (homes.container_of(bench), bench.home.keystore / "keystore.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
