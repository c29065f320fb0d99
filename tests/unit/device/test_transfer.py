"""Exports: for one receiver, never in plain, checked again on arrival."""

from __future__ import annotations

import hashlib

import pytest

from casemate import keystores
from casemate.crypto.secret import Secret
from casemate.device import containers, models, transfer
from casemate.device.inspector import Inspection
from casemate.errors import BusyError, NotAuthorisedError, UntrustedDataError, UsageError
from casemate.formats import container as fmt
from support import containers as sample
from support import gguf_files, homes


@pytest.fixture(autouse=True)
def _inspect_here(monkeypatch):
    """Check headers without a sandboxed child: the child has tests of its own."""
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return homes.make(tmp_path, monkeypatch)


@pytest.fixture
def other(tmp_path, monkeypatch, bench):
    return homes.make(tmp_path, monkeypatch, "other")


def export(bench, to, **whom):
    return transfer.export_model(bench.home, bench.sources, "tiny", to, **whom)


def test_an_export_for_a_key_opens_in_that_home_only(bench, other, tmp_path):
    bench.add()
    file = tmp_path / "out.cmodel"
    assert export(bench, file, recipient=keystores.describe(other.home).owner_public) == file.stat().st_size
    added = models.add_model(other.home, other.sources, file, name="got")
    assert added.digest == models.show_model(bench.home, "tiny").digest
    assert other.verify("got") == ""
    with pytest.raises(NotAuthorisedError):
        models.add_model(bench.home, bench.sources, file, name="back")


def test_an_export_for_a_passphrase_opens_with_it_only(bench, other, tmp_path):
    bench.add()
    file = tmp_path / "out.cmodel"
    export(bench, file, passphrase=Secret(b"correct horse"))
    for wrong in (None, Secret(b"correct mouse")):
        with pytest.raises(NotAuthorisedError):
            models.add_model(other.home, other.sources, file, name="got", passphrase=wrong)
    models.add_model(other.home, other.sources, file, name="got", passphrase=Secret(b"correct horse"))
    assert other.verify("got") == ""


def test_an_export_keeps_no_slot_of_its_home_and_the_receiver_gets_a_new_key(bench, other, tmp_path):
    bench.add()
    file = tmp_path / "out.cmodel"
    export(bench, file, passphrase=Secret(b"correct horse"))
    with containers.open_container(file) as opened, containers.open_container(homes.container_of(bench)) as own:
        assert [type(slot) for slot in opened.container.slots] == [fmt.PassphraseSlot]
        assert opened.container.header == own.container.header
    models.add_model(other.home, other.sources, file, name="got", passphrase=Secret(b"correct horse"))
    with containers.open_container(homes.container_of(other, "got")) as got:
        assert got.container.header.file_id != own.container.header.file_id


def test_an_export_does_not_overwrite_and_does_not_pass_on_damage(bench, tmp_path):
    bench.add()
    file = tmp_path / "out.cmodel"
    file.write_text("mine")
    with pytest.raises(BusyError):
        export(bench, file, passphrase=Secret(b"correct horse"))
    assert file.read_text() == "mine"
    path = homes.container_of(bench)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UntrustedDataError):
        export(bench, tmp_path / "two.cmodel", passphrase=Secret(b"correct horse"))
    assert not (tmp_path / "two.cmodel").exists()


def test_a_hostile_export_meets_the_same_header_check(bench, other, tmp_path, monkeypatch):
    """Whoever knows the data key can put anything under valid tags."""
    with monkeypatch.context() as patched:
        patched.setattr(
            models, "inspect_file", lambda _fd, _size: Inspection(sample.FACTS, 1, hashlib.sha256(b"G").digest())
        )
        bench.add(b"G" + gguf_files.MALFORMED["a nested array"][0][1:])
    export(bench, tmp_path / "evil.cmodel", passphrase=Secret(b"correct horse"))
    with pytest.raises(UntrustedDataError) as refused:
        models.add_model(
            other.home, other.sources, tmp_path / "evil.cmodel", name="got", passphrase=Secret(b"correct horse")
        )
    assert refused.value.check == "gguf-nested-array"


@pytest.mark.parametrize("text", ["", "x25519:", "x25519:AAAA", "x25519:" + "A" * 43, "hello", "x25519:" + "!" * 43])
def test_what_is_not_an_owner_key_is_refused(text):
    with pytest.raises(UsageError):
        transfer.parse_owner(text)


def test_an_owner_key_survives_being_written_down(bench):
    public = keystores.describe(bench.home).owner_public
    assert transfer.parse_owner(transfer.format_owner(public)) == public
