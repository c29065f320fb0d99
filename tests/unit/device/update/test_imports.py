"""A repository in a tar: the same checks as over a network, and a staleness that is bounded and shown."""

from __future__ import annotations

import os
import time

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from casemate.device.update import fetch, imports
from casemate.device.update import offer as offers
from casemate.device.update.assembly import Terms
from casemate.device.update.imports import TarSource
from casemate.device.update.pace import Limits, NotNowError
from casemate.device.update.pacer import Pacer
from casemate.errors import NotFoundError, UntrustedDataError
from casemate.formats import archive, grant, signature_log
from casemate.release import export, grants, store
from support import published
from support.release import FixedClock

NOW = float(int(time.time()))
DAY = 86_400.0


@pytest.fixture
def tar(repository, tmp_path):
    def make(channel="stable"):
        path = tmp_path / "export.tar"
        export.export(repository, path, channel=channel, advance=lambda _count: None)
        return path

    return make


@pytest.fixture
def carried(tmp_path, repository):
    """A device that is never connected."""
    directory = tmp_path / "update"
    published.follow(directory, repository, "https://updates.example")
    return directory


def read(directory, path, *, after=0.0):
    with TarSource(path) as source:
        return offers.read_offer(published.client(directory, source, now=NOW + after), "stable")


def test_an_export_holds_all_that_an_update_needs(carried, tar, repository, tmp_path):
    public = bytes(range(32))
    (record,) = grants_made(repository, public)
    path = tar()
    offer = read(carried, path)
    assert (offer.freshness.offline, offer.freshness.stale_days) == (True, 0)
    (member,) = offer.members
    with TarSource(path) as source:
        assert fetch.fetch_sealed(source, member.manifest)
        assert fetch.fetch_grant(source, record.id, grant.recipient_id(public))
        got = fetch.fetch_release(source, member, tmp_path / "fetch" / record.id, bases=())
    assert got.path.stat().st_size == member.manifest.full.transfer_bytes


def grants_made(repository, public):
    records = store.published(repository)
    for record in records:
        grants.grant(repository, record, [public])
    return records


def test_limits_of_the_line_do_not_hold_for_a_stick(carried, tar, tmp_path):
    """Outside the allowed hours and with the day's bytes used up."""
    path = tar()
    (member,) = read(carried, path).members
    closed = Pacer(tmp_path / "spent", Limits(rate=1, daily=1, hours=((0, 0),)), FixedClock(NOW), sleep=pytest.fail)
    with pytest.raises(NotNowError):
        closed.ask(1)
    with TarSource(path) as source:
        got = fetch.fetch_release(source, member, tmp_path / "fetch" / "r", bases=(), terms=Terms(pacer=closed))
    assert got.path.stat().st_size == member.manifest.full.transfer_bytes


def test_past_the_timestamps_day_it_is_accepted_and_shown(carried, tar):
    offer = read(carried, tar(), after=5.5 * DAY)
    assert (offer.freshness.offline, offer.freshness.stale_days) == (True, 5)


def test_the_same_over_a_network_is_refused(carried, repository, server):
    with published.transport(server.url) as source:
        client = published.client(carried, source, now=NOW + 5.5 * DAY)
        with pytest.raises(UntrustedDataError) as caught:
            offers.read_offer(client, "stable")
    assert caught.value.check == "metadata-expired"


def set_offline_days(repository, days):
    trust = signature_log.parse_trust(repository.read_target("targets", signature_log.TRUST_PATH))
    raw = msgspec.json.encode(msgspec.structs.replace(trust, offline_days=days))
    info = repository.add_target(signature_log.TRUST_PATH, raw)
    repository.edit({"targets": lambda targets: targets.targets.update({signature_log.TRUST_PATH: info})})


@pytest.mark.parametrize("days", [0, 3])
def test_how_stale_it_may_be_is_what_the_offline_keys_say(carried, tar, repository, days):
    fine, late = days + 0.9, days + 1.1  # counted from the end of the timestamp's own day
    set_offline_days(repository, days)
    path = tar()
    read(carried, path, after=fine * DAY)
    with pytest.raises(UntrustedDataError, match="past its date") as caught:
        read(carried, path, after=late * DAY)
    assert caught.value.check == "metadata-expired"


@pytest.mark.parametrize(("role", "days"), [("channels", 14), ("models", 30), ("targets", 90), ("root", 365)])
def test_what_offline_keys_sign_has_no_grace(carried, tar, repository, role, days):
    """The grace is for the two online roles, whose keys cannot follow the tar; every other end is the end."""
    set_offline_days(repository, 365)
    repository._clock.now += 400 * DAY
    for other in sorted({"channels", "models", "targets"} - {role}):
        repository.edit({other: lambda _targets: None})
    path = tar()
    with pytest.raises(UntrustedDataError) as caught:
        read(carried, path, after=(days + 0.5) * DAY)
    assert caught.value.check == "metadata-expired"
    assert role in caught.value.message


def test_an_older_export_after_a_newer_one_is_refused(carried, tar, repository, tmp_path):
    old = tar().rename(tmp_path / "old.tar")
    published.put(repository, tmp_path / "spec", "1.1")
    assert read(carried, tar()).generation == 2
    with pytest.raises(UntrustedDataError) as caught:
        read(carried, old)
    assert caught.value.check == "metadata-rollback"


def test_what_was_learnt_from_a_tar_holds_over_a_network(carried, tar, repository, server, tmp_path):
    saved = {path: path.read_bytes() for path in (repository.public / "metadata").iterdir()}
    published.put(repository, tmp_path / "spec", "1.1")
    read(carried, tar())
    for path in (repository.public / "metadata").iterdir():
        path.unlink()
    for path, data in saved.items():
        path.write_bytes(data)
    with published.transport(server.url) as source, pytest.raises(UntrustedDataError):
        offers.read_offer(published.client(carried, source), "stable")


def test_what_the_tar_lacks_is_not_found(carried, tar):
    with TarSource(tar()) as source, pytest.raises(NotFoundError, match="does not have"):
        source.get("chunks/00/" + "0" * 64, 100)
    with pytest.raises(NotFoundError):
        TarSource(tar().with_name("other.tar"))


def test_a_medium_taken_out_is_not_half_a_file(carried, tar):
    path = tar()
    with TarSource(path) as source:
        os.truncate(path, 2000)
        with pytest.raises(UntrustedDataError) as caught:
            source.get("metadata/timestamp.json", 100_000)
    assert caught.value.check == "import-truncated"


def test_a_changed_byte_anywhere_is_refused_or_changes_nothing(carried, tar, tmp_path):
    """Every 509th byte of the tar: refused while it is listed, or by a signature, or by a digest; never believed."""
    path = tar()
    raw = path.read_bytes()
    honest = read(carried, path)
    expected = honest.content_digest
    for at in range(0, len(raw), 509):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :])
        try:
            with TarSource(path) as source:
                offer = offers.read_offer(published.client(carried, source, now=NOW), "stable")
                (member,) = offer.members
                fetch.fetch_sealed(source, member.manifest)
        except (UntrustedDataError, NotFoundError):
            continue
        assert offer.content_digest == expected


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_list_or_a_refusal(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    path.write_bytes(data)
    with pytest.raises(UntrustedDataError) as caught:
        TarSource(path)
    assert caught.value.check.startswith("import-")


NAMES = st.one_of(
    st.sampled_from(["metadata/timestamp.json", "metadata/1.root.json", "chunks/ab/" + "ab" * 32, "../x", "/etc/x"]),
    st.text(st.sampled_from("abz019./-"), min_size=1, max_size=80),
)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=600)), max_size=6))
def test_only_paths_of_a_repository_are_listed_each_once(tmp_path_factory, members):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    with path.open("wb") as file:
        for name, data in members:
            file.write(archive.member_block(name, len(data), 0) + data + bytes(archive.padding(len(data))))
        file.write(archive.END)
    try:
        source = TarSource(path)
    except UntrustedDataError as error:
        assert error.check in {"import-path", "import-duplicate", "import-size"}
        return
    with source:
        for name, data in members:
            assert source.get(name, 1000) == data
            assert any(rule.match(name) for rule, _ in imports._RULES)
            assert ".." not in name.split("/")
