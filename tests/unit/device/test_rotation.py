"""New keys for a home: what changes, what does not, and a kill at every point."""

from __future__ import annotations

import os

import pytest

from casemate import keystores
from casemate.device import containers, models, rotation, store
from casemate.errors import BusyError
from casemate.formats import container as fmt
from support import homes, kill


@pytest.fixture(autouse=True)
def _inspect_here(monkeypatch):
    """Check headers without a sandboxed child: the child has tests of its own."""
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return homes.make(tmp_path, monkeypatch)


def rotate(bench, **options):
    return rotation.rotate(bench.home, bench.sources, bench.sources, to=None, show=print, **options)


def test_rotation_rewraps_every_container_and_touches_no_chunk(bench):
    bench.add()
    bench.add(name="second")
    before = homes.container_of(bench).read_bytes()
    with bench.unlock() as keystore:
        old = keystore.key_id
    done = rotate(bench)
    after = homes.container_of(bench).read_bytes()
    assert (done.rewrapped, done.refused, done.resumed) == (2, {}, False)
    assert after[fmt.HEAD_BYTES :] == before[fmt.HEAD_BYTES :]
    assert after[: fmt.HEADER_BYTES] == before[: fmt.HEADER_BYTES]
    assert after != before
    with bench.unlock() as keystore:
        assert keystore.key_id != old
        assert keystore.previous is None
    assert bench.verify() == bench.verify("second") == ""
    assert "key_rotated" in bench.said()
    assert len(bench.keyfile.read_text().splitlines()) == 1


def test_an_old_slot_area_does_not_open_after_rotation(bench):
    bench.add()
    path = homes.container_of(bench)
    old = path.read_bytes()
    rotate(bench)
    path.write_bytes(old)
    assert bench.verify() == "wrong-keystore"


def test_rotation_waits_for_nobody(bench):
    with containers.models_lock(bench.home.models, exclusive=False), pytest.raises(BusyError):
        rotate(bench)
    with bench.home.lock(), pytest.raises(BusyError):
        rotate(bench)


def test_a_damaged_container_is_reported_not_blessed(bench):
    bench.add()
    path = homes.container_of(bench)
    data = bytearray(path.read_bytes())
    data[fmt.HEADER_BYTES + 4 + data[fmt.HEADER_BYTES + 4 :].index(b"Apache")] ^= 1
    path.write_bytes(data)
    assert rotate(bench).refused == {"tiny": "container-mac"}


def test_rotation_survives_a_kill_at_every_point(bench):
    bench.add()
    bench.add(name="second")
    fatal = 1
    while not kill.run_and_die_at(fatal, lambda: rotate(bench)):
        assert bench.verify() == bench.verify("second") == ""
        if keystores.describe(bench.home, bench.sources).rotating:
            assert rotate(bench).resumed
            assert bench.verify() == bench.verify("second") == ""
        fatal += 1
    assert fatal > 20
    assert not keystores.describe(bench.home, bench.sources).rotating
    rotate(bench)
    assert sorted(path.name for path in bench.home.models.iterdir()) == ["second.cmodel", "tiny.cmodel"]
    assert [path.name for path in bench.home.keystore.iterdir()] == ["keystore.json"]
    assert [path.name for path in bench.keyfile.parent.iterdir()] == ["device.key"]
    assert len(bench.keyfile.read_text().splitlines()) == 1


def record_of(path):
    return containers.redo_path(path, fmt.parse_header(path.read_bytes()))


def test_a_torn_slot_area_is_finished_from_its_record(bench):
    bench.add()
    path = homes.container_of(bench)
    with (
        bench.unlock() as keystore,
        store.opened_model(bench.home, keystore, "tiny") as (opened, verified),
        containers.unwrap_for_home(opened.container, keystore) as data_key,
    ):
        slot = containers.home_slot(verified.header, data_key, keystore)
        area = fmt.seal_area(verified.header, fmt.SlotArea(slots=(slot,), labels=verified.labels), data_key)
    record_of(path).write_bytes(area)
    with path.open("r+b") as file:
        file.seek(fmt.HEADER_BYTES)
        file.write(area[:100] + os.urandom(400))
    assert bench.verify() == ""
    assert not record_of(path).exists()
    assert path.read_bytes()[fmt.HEADER_BYTES : fmt.HEAD_BYTES] == area


def test_a_planted_record_is_refused(bench):
    bench.add()
    path = homes.container_of(bench)
    data = path.read_bytes()
    record_of(path).write_bytes(data[fmt.HEADER_BYTES : fmt.HEAD_BYTES - 1] + b"x")
    assert bench.verify() == "container-mac"
    record_of(path).write_bytes(b"short")
    assert bench.verify() == "container-slots"
    assert path.read_bytes() == data


def test_a_record_of_another_container_of_that_name_is_not_taken(bench):
    """`add --replace` was killed before it could clean up: the new container does not fall for the old one's record."""
    bench.add()
    path = homes.container_of(bench)
    stale = record_of(path)
    area = path.read_bytes()[fmt.HEADER_BYTES : fmt.HEAD_BYTES]
    bench.add(replace=True)
    stale.write_bytes(area)
    assert bench.verify() == ""
    models.remove_model(bench.home, "tiny")
    assert not stale.exists()


def test_a_change_is_not_finished_while_somebody_else_changes_models(bench):
    bench.add()
    path = homes.container_of(bench)
    data = path.read_bytes()
    record = record_of(path)
    record.write_bytes(data[fmt.HEADER_BYTES : fmt.HEAD_BYTES])
    with containers.models_lock(bench.home.models, exclusive=True):
        assert bench.verify() == ""
        assert record.exists()
    assert bench.verify() == ""
    assert not record.exists()
