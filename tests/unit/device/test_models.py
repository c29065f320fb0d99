"""The store of models: adding, proving, removing, moving between homes, new keys, and what a crash leaves."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device import containers, models, store
from casemate.device.inspector import Inspection
from casemate.device.sealed import unseal_into_memory
from casemate.errors import BusyError, NotFoundError, OperationError, UntrustedDataError, UsageError
from casemate.ids import parse_name
from support import gguf_files, homes, kill


@pytest.fixture(autouse=True)
def _inspect_here(monkeypatch):
    """Check headers without a sandboxed child: the child has tests of its own."""
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return homes.make(tmp_path, monkeypatch)


def leftovers(bench):
    return sorted(path.name for path in bench.home.models.iterdir())


# --- adding -----------------------------------------------------------------------------------------------------------


def test_what_was_added_is_listed_and_proven(bench):
    data = gguf_files.tiny()
    info = bench.add(licence="MIT")
    assert info.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (info.bytes, info.format, info.licence, info.name) == (len(data), "gguf", "MIT", "tiny")
    assert models.list_models(bench.home) == [info]
    assert bench.verify() == ""
    assert bench.said() == ["model_added", "model_verified"]


def test_the_licence_in_the_file_is_the_default(bench):
    assert bench.add().licence == "Apache-2.0"


def test_a_model_of_several_chunks_comes_back_whole(bench, tmp_path):
    gguf_files.write_sized(tmp_path / "big.gguf", 3 << 20)
    data = (tmp_path / "big.gguf").read_bytes()
    bench.add(data, "big")
    with bench.unlock() as keystore, store.opened_model(bench.home, keystore, "big") as (opened, verified):
        memory = unseal_into_memory(opened.fd, verified, lambda: None)
    assert verified.header.chunks > 2
    assert os.pread(memory, len(data) + 1, 0) == data
    os.close(memory)


def test_a_taken_name_is_refused_unless_replacing(bench):
    first = bench.add()
    with pytest.raises(BusyError):
        bench.add()
    second = bench.add(gguf_files.tiny()[:-1] + b"!", replace=True)
    assert second.digest != first.digest
    assert leftovers(bench) == ["tiny.cmodel"]
    assert bench.verify() == ""


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../x", "a" * 64, ".hidden"])
def test_a_name_that_is_not_one_is_refused(bench, tmp_path, name):
    (tmp_path / "x.gguf").write_bytes(gguf_files.tiny())
    with pytest.raises(UsageError):
        models.add_model(bench.home, bench.sources, tmp_path / "x.gguf", name=name or "/")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Llama-3.2 1B (Q8).gguf", "llama-3.2-1b-q8"),
        ("saffron-q8_0.gguf", "saffron-q8_0"),
        ("x.cmodel", "x"),
        ("..gguf", "model"),
        ("\u00fc\u00fc.gguf", "model"),
        ("a..b.gguf", "a.b"),
        ("n" * 99 + ".gguf", "n" * 63),
    ],
)
def test_a_name_is_derived_from_the_file(tmp_path, file, name):
    assert models.name_for(tmp_path / file) == name


@given(st.text(min_size=1, max_size=100))
def test_any_derived_name_is_a_name(text):
    assert parse_name(models.name_for(Path("/x") / text.replace("/", "_").replace("\0", "_")), "model")


@pytest.mark.parametrize("fault", ["nested", "pickle"])
def test_a_refused_file_leaves_nothing_and_is_journaled(bench, fault):
    data = {"nested": gguf_files.MALFORMED["a nested array"][0], "pickle": gguf_files.OTHER_FORMATS["pickle"]}[fault]
    with pytest.raises(UntrustedDataError):
        bench.add(data)
    assert leftovers(bench) == []
    assert bench.said() == ["model_refused"]


def test_only_a_regular_file_is_taken(bench, tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", tmp_path):
        with pytest.raises(UntrustedDataError):
            models.add_model(bench.home, bench.sources, path, name="x")
    with pytest.raises(NotFoundError):
        models.add_model(bench.home, bench.sources, tmp_path / "none.gguf", name="x")


@pytest.mark.parametrize("change", ["header", "shorter"])
def test_a_file_that_changes_between_check_and_encryption_is_refused(bench, tmp_path, monkeypatch, change):
    gguf_files.write_sized(tmp_path / "x.gguf", 2 << 20)
    real = models.inspect_file

    def then_change(fd: int, size: int) -> Inspection:
        found = real(fd, size)
        if change == "shorter":
            os.truncate(tmp_path / "x.gguf", size - 10)
        else:
            with (tmp_path / "x.gguf").open("r+b") as file:
                file.seek(60)
                file.write(b"?")
        return found

    monkeypatch.setattr(models, "inspect_file", then_change)
    with pytest.raises(UntrustedDataError) as refused:
        models.add_model(bench.home, bench.sources, tmp_path / "x.gguf", name="x")
    assert refused.value.check == "changed-while-read"
    assert leftovers(bench) == []


def test_a_full_disk_is_said_beforehand(bench, monkeypatch):
    monkeypatch.setattr(models.os, "statvfs", lambda _path: os.statvfs_result((4096, 4096, 9, 9, 10, 9, 9, 9, 0, 255)))
    with pytest.raises(OperationError, match="are free"):
        bench.add()
    assert leftovers(bench) == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(bench, monkeypatch):
    def full(fd, data, offset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(containers, "write_all", full)
    with pytest.raises(OperationError, match="No space left"):
        bench.add()
    assert leftovers(bench) == []


def test_without_unnamed_files_a_named_one_is_used_and_cleaned(bench, monkeypatch):
    real = os.open

    def no_unnamed(path, flags, *rest, **more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "unsupported")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(containers.os, "open", no_unnamed)
    bench.add()
    with pytest.raises(BusyError):
        bench.add()
    bench.add(replace=True)
    assert leftovers(bench) == ["tiny.cmodel"]
    assert bench.verify() == ""


def test_leftovers_of_a_dead_writer_go_and_those_of_a_live_one_stay(bench, monkeypatch):
    (bench.home.models / ".new-0123").write_bytes(b"dead")
    with containers.UnnamedFile(bench.home.models) as alive:
        name = alive._fresh_name()
        alive._link(name)
        containers.remove_leftovers(bench.home.models)
        assert leftovers(bench) == [name.name]
    containers.remove_leftovers(bench.home.models)
    assert leftovers(bench) == []


def test_a_model_the_journal_does_not_know_is_not_kept(bench, monkeypatch):
    def dead(_home, *_events):
        raise OperationError("the journal is gone")

    monkeypatch.setattr(models, "record", dead)
    with pytest.raises(OperationError, match="journal"):
        bench.add()
    assert leftovers(bench) == []


# --- proving and listing ----------------------------------------------------------------------------------------------


def test_a_damaged_container_is_listed_with_its_problem(bench):
    bench.add()
    path = homes.container_of(bench)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    (found,) = models.list_models(bench.home)
    assert (found.name, found.problem) == ("tiny", "container-magic")
    assert bench.verify() == "container-magic"
    assert "model_refused" in bench.said()


def test_a_moved_container_is_refused(bench):
    bench.add()
    homes.container_of(bench).rename(homes.container_of(bench, "other"))
    assert bench.verify("other") == "container-name"


def test_a_link_is_not_followed(bench, tmp_path):
    bench.add()
    shutil.move(homes.container_of(bench), tmp_path / "elsewhere")
    homes.container_of(bench).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperationError):
        bench.verify()


def test_what_is_not_there_is_not_found(bench):
    for ask in (
        bench.verify,
        lambda name: models.show_model(bench.home, name),
        lambda n: models.remove_model(bench.home, n),
    ):
        with pytest.raises(NotFoundError):
            ask("nothing")


def test_removing_takes_the_file_and_says_so(bench):
    bench.add()
    models.remove_model(bench.home, "tiny")
    assert leftovers(bench) == []
    assert bench.said()[-1] == "model_removed"


def test_adding_survives_a_kill_at_every_point(bench, tmp_path):
    """Whatever the moment: the model is there and whole, or it is not there at all."""
    (tmp_path / "tiny.gguf").write_bytes(gguf_files.tiny())
    fatal = 1
    while not kill.run_and_die_at(fatal, bench.add):
        if leftovers(bench):
            assert leftovers(bench) == ["tiny.cmodel"]
            assert bench.verify() == ""
            homes.container_of(bench).unlink()
        fatal += 1
    assert fatal > 5
    assert bench.verify() == ""
