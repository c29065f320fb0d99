"""Payloads over real connections: resumed, proven, paced, stopped, and the full one when a delta fails."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest

from casemate.device.update import assembly, fetch, pace
from casemate.device.update.assembly import Terms, Watch
from casemate.device.update.offer import Offered
from casemate.device.update.pace import Limits, NotNowError
from casemate.device.update.pacer import Pacer
from casemate.errors import NotAuthorisedError, NotFoundError, OperationError, PolicyDeniedError, UntrustedDataError
from casemate.formats import grant, manifest
from casemate.formats.manifest import VerifiedManifest
from casemate.formats.payload import SEALED_CHUNK_BYTES
from support import mirror, published, releases
from support.release import FixedClock

BASE = "b" * 32
PLAIN = np.random.default_rng(5).bytes(3_500_000)
MADE = releases.release(PLAIN, delta=PLAIN[:1_200_000], base=b"old", base_release=BASE)


def offered(made=MADE):
    return Offered(None, VerifiedManifest(made.manifest, "0" * 64), manifest.encode(made.manifest))


@pytest.fixture
def site(tmp_path):
    """A server that has the chunks of MADE."""
    for digest, data in MADE.chunks.items():
        path = tmp_path / "public" / manifest.chunk_path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with mirror.serving(tmp_path / "public") as running:
        yield running


@pytest.fixture
def place(tmp_path):
    return tmp_path / "fetch" / MADE.manifest.release


def get(site, place, *, bases=(), terms=None, made=MADE, **how):
    with published.transport(site.url, **how) as source:
        return fetch.fetch_release(source, offered(made), place, bases=bases, terms=terms)


def payload(role):
    return next(item for item in MADE.manifest.payloads if item.role == role)


def test_the_file_is_the_sealed_chunks_one_after_another(site, place):
    seen = []
    got = get(site, place, terms=Terms(tell=seen.append))
    assert got.path.read_bytes() == MADE.stream(payload("full").id)
    assert (got.bytes, got.saved) == (got.path.stat().st_size, 0)
    assert [item.done for item in seen] == sorted(item.done for item in seen)
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, got.bytes, got.bytes)


def test_a_delta_is_taken_when_the_device_has_its_base_and_it_is_smaller(site, place):
    got = get(site, place, bases={BASE})
    assert got.payload.role == "delta"
    assert got.saved == payload("full").transfer_bytes - got.bytes > 0
    assert get(site, place, bases={"a" * 32}).payload.role == "full"


def test_a_delta_larger_than_the_full_payload_is_not_taken():
    made = releases.release(b"x" * 100, delta=b"y" * 200, base=b"old", base_release=BASE)
    assert fetch.choose(made.manifest, {BASE}).role == "full"


def test_what_is_there_is_proven_and_not_fetched_again(site, place):
    first = get(site, place)
    site.sent.clear()
    assert get(site, place).path == first.path
    assert site.bytes_of_chunks == 0
    with open(first.path, "r+b") as file:
        file.seek(2 * SEALED_CHUNK_BYTES + 5)
        file.write(b"rot")
    assert get(site, place).path.read_bytes() == MADE.stream(payload("full").id)
    assert site.bytes_of_chunks == SEALED_CHUNK_BYTES


def test_a_line_that_is_cut_costs_nothing_that_was_received(site, place):
    """A chunk goes on where it was; its address is its digest, so it cannot become another."""
    cuts = [300_000, 600_000, 950_000]
    chunk = MADE.manifest.full.chunks[1]

    def cut(handler, path):
        if not cuts:
            return False
        at = cuts.pop(0)
        begun = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        site.give(handler, path, MADE.chunks[chunk.sha256], stop=at - begun)
        return True

    site.answer(chunk.path, cut)
    got = get(site, place)
    assert got.path.read_bytes() == MADE.stream(payload("full").id)
    assert site.bytes_of_chunks == got.bytes


def test_a_server_without_ranges_starts_the_chunk_again(site, place):
    chunk = MADE.manifest.full.chunks[0]

    def cut(handler, path):
        del handler.headers["Range"]
        site.give(handler, path, MADE.chunks[chunk.sha256], stop=500_000)
        return True

    def plain(handler, path):
        del handler.headers["Range"]
        return False

    site.answer("(?!x)" + chunk.path, mirror.times(1, cut))
    site.answer(chunk.path, plain)
    assert get(site, place).path.read_bytes() == MADE.stream(payload("full").id)


def test_a_chunk_damaged_once_on_the_way_is_asked_for_again(site, place):
    chunk = MADE.manifest.full.chunks[0]
    bad = bytes(chunk.size)
    site.answer(chunk.path, mirror.times(1, lambda handler, path: site.give(handler, path, bad) or True))
    assert get(site, place).path.read_bytes() == MADE.stream(payload("full").id)


def test_a_chunk_that_is_another_is_refused_and_the_good_ones_kept(site, place):
    chunk = MADE.manifest.full.chunks[2]
    site.answer(chunk.path, lambda handler, path: site.give(handler, path, bytes(chunk.size)) or True)
    with pytest.raises(UntrustedDataError) as caught:
        get(site, place)
    assert caught.value.check == "chunk-digest"
    site.answers.clear()
    site.sent.clear()
    get(site, place)
    assert site.bytes_of_chunks == sum(item.size for item in MADE.manifest.full.chunks[2:])


def test_a_short_chunk_is_refused(site, place):
    chunk = MADE.manifest.full.chunks[0]
    site.answer(chunk.path, lambda handler, path: site.give(handler, path, bytes(10)) or True)
    with pytest.raises(UntrustedDataError) as caught:
        get(site, place)
    assert caught.value.check == "chunk-size"


@pytest.mark.parametrize("broken", ["gone", "damaged", "endless"])
def test_a_delta_that_cannot_be_fetched_is_given_up_once_for_the_full_payload(site, place, broken):
    chunk = payload("delta").chunks[1]
    acts = {
        "gone": mirror.status(404),
        "damaged": lambda handler, path: site.give(handler, path, bytes(chunk.size)) or True,
        "endless": lambda handler, path: site.give(handler, path, bytes(chunk.size + 1)) or True,
    }
    site.answer(chunk.path, acts[broken])
    got = get(site, place, bases={BASE})
    assert got.payload.role == "full"
    assert fetch.failed_deltas(place) == {payload("delta").id}
    assert [path.name for path in place.glob("*.sealed")] == [got.path.name]
    site.asked.clear()
    assert get(site, place, bases={BASE}).payload.role == "full"
    assert chunk.path not in site.asked


def test_a_delta_is_not_given_up_for_what_is_not_its_fault(site, place):
    site.answer("chunks/.*", mirror.status(503))
    with pytest.raises(OperationError):
        get(site, place, bases={BASE})
    assert not fetch.failed_deltas(place)

    def gone():
        raise NotFoundError("the channel is gone")

    with pytest.raises(NotFoundError):
        get(site, place, bases={BASE}, terms=Terms(watch=Watch(gone, every=0)))
    assert not fetch.failed_deltas(place)


def test_a_failed_delta_is_forgotten_with_its_release(site, place):
    get(site, place, bases={BASE})
    fetch.note_failed_delta(place, payload("delta").id)
    assert not list(place.glob("*.sealed"))
    assert fetch.choose(MADE.manifest, {BASE}, fetch.failed_deltas(place)).role == "full"
    fetch.sweep(place.parent)
    assert not place.exists()


def test_a_stop_is_obeyed_in_the_middle(site, place):
    looks = []

    def look():
        looks.append(site.bytes_of_chunks)
        if len(looks) == 2:
            raise PolicyDeniedError("stopped")

    with pytest.raises(PolicyDeniedError):
        get(site, place, terms=Terms(watch=Watch(look, every=1 << 20)))
    assert looks == [SEALED_CHUNK_BYTES * count for count in (0, 1)]
    site.sent.clear()
    get(site, place)
    assert site.bytes_of_chunks == payload("full").transfer_bytes - SEALED_CHUNK_BYTES


def test_a_watch_looks_after_a_minute_too():
    now = [0.0]
    looks = []
    watch = Watch(lambda: looks.append(now[0]), monotonic=lambda: now[0])
    for second in range(0, 200, 10):
        now[0] = float(second)
        watch.before(10)
    assert looks == [70.0, 140.0]


def test_space_is_asked_for_before_the_first_byte(site, place):
    place.parent.mkdir()
    with pytest.raises(OperationError, match="MiB are free"):
        get(site, place, terms=Terms(room={place.parent: 1 << 60}))
    assert not site.asked
    assert not list(place.iterdir())


def test_the_file_has_its_full_size_on_disk_before_the_first_byte(site, place):
    sizes = []

    def look():
        (path,) = place.glob("*.sealed")
        sizes.append(path.stat().st_blocks * 512)

    get(site, place, terms=Terms(watch=Watch(look, every=0)))
    assert sizes[0] >= payload("full").transfer_bytes


def test_a_disk_that_fills_up_while_space_is_taken_leaves_nothing(site, place, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OperationError, match="No space left"):
        get(site, place)
    assert not list(place.iterdir())
    monkeypatch.undo()
    get(site, place)


def test_a_link_in_the_files_place_is_not_followed(site, place, tmp_path):
    place.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    assembly.path_of(place, payload("full").id).symlink_to(victim)
    with pytest.raises(OperationError):
        get(site, place)
    assert victim.read_bytes() == b"mine"


def pacer(tmp_path, clock, slept, **limits):
    return Pacer(tmp_path / "spent", Limits(**limits), clock, sleep=slept.append)


def test_the_days_budget_is_durable_and_ends_before_a_chunk_not_in_it(site, place, tmp_path):
    clock = FixedClock(1_800_000_000)
    limit = 2 * SEALED_CHUNK_BYTES + 1000
    for _ in range(2):  # the second one is a new process: nothing is left
        with pytest.raises(NotNowError) as caught:
            get(site, place, terms=Terms(pacer=pacer(tmp_path, clock, [], daily=limit)))
        assert caught.value.reason == "budget"
    assert site.bytes_of_chunks == 2 * SEALED_CHUNK_BYTES
    clock.now += 86_400
    one = pacer(tmp_path, clock, [], daily=limit)
    get(site, place, terms=Terms(pacer=one))
    one.close()
    assert site.bytes_of_chunks == payload("full").transfer_bytes
    again = pacer(tmp_path, clock, [], daily=limit)
    rest = payload("full").transfer_bytes - 2 * SEALED_CHUNK_BYTES
    again.ask(limit - rest)
    with pytest.raises(NotNowError):
        again.ask(limit - rest + 1)


def test_a_crash_counts_what_was_asked_for_and_never_less(tmp_path):
    clock = FixedClock(1_800_000_000)
    first = pacer(tmp_path, clock, [], daily=20 << 20)
    first.ask(1 << 20)
    first.taken(1 << 20)  # and no close: it was killed
    second = pacer(tmp_path, clock, [], daily=20 << 20)
    second.ask(16 << 20)
    with pytest.raises(NotNowError):
        second.ask((16 << 20) + 1)


def test_a_damaged_count_is_a_day_used_up(tmp_path):
    (tmp_path / "spent").write_bytes(b"{}}")
    clock = FixedClock(1_800_000_000)
    with pytest.raises(NotNowError):
        pacer(tmp_path, clock, [], daily=20 << 20).ask(1)
    clock.now += 86_400
    pacer(tmp_path, clock, [], daily=20 << 20).ask(1)


def test_nothing_is_asked_for_outside_the_hours(site, place, tmp_path):
    moment = time.localtime(1_800_000_000)
    minute = moment.tm_hour * 60 + moment.tm_min
    closed = ((minute + 1) % 1440, (minute + 1) % 1440 + 1)
    with pytest.raises(NotNowError) as caught:
        get(site, place, terms=Terms(pacer=pacer(tmp_path, FixedClock(1_800_000_000), [], hours=(closed,))))
    assert (caught.value.reason, caught.value.exit_code, site.asked) == ("hours", 6, [])


def test_the_rate_limit_waits_for_every_byte_beyond_the_burst(site, place, tmp_path):
    slept = []
    get(site, place, terms=Terms(pacer=pacer(tmp_path, FixedClock(1_800_000_000), slept, rate=1_000_000)))
    # the clock stands, so every wait is for the whole debt until then: the last is that of the whole payload
    assert slept[-1] == pytest.approx((payload("full").transfer_bytes - pace.BURST_BYTES) / 1_000_000)


def test_the_sealed_part_is_the_one_the_manifest_names(site):
    with published.transport(site.url) as source:
        assert fetch.fetch_sealed(source, MADE.manifest) == MADE.sealed
        path = MADE.manifest.sealed.path
        site.answer(path, lambda handler, _: site.give(handler, path, bytes(len(MADE.sealed))) or True)
        with pytest.raises(UntrustedDataError) as caught:
            fetch.fetch_sealed(source, MADE.manifest)
    assert caught.value.check == "chunk-digest"


def test_a_release_that_was_not_granted_says_what_to_do(site, tmp_path):
    recipient = grant.recipient_id(bytes(32))
    with published.transport(site.url) as source:
        with pytest.raises(NotAuthorisedError, match="not granted"):
            fetch.fetch_grant(source, MADE.manifest.release, recipient)
        path = tmp_path / "public" / grant.path(MADE.manifest.release, recipient)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"sealed to it")
        assert fetch.fetch_grant(source, MADE.manifest.release, recipient) == b"sealed to it"
        path.write_bytes(bytes(grant.LIMIT + 1))
        with pytest.raises(UntrustedDataError):
            fetch.fetch_grant(source, MADE.manifest.release, recipient)
