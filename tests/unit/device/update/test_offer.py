"""What a channel offers, read over a real connection from a real repository."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from casemate.device.update import fetch
from casemate.device.update import offer as offers
from casemate.device.update.assembly import Terms, Watch
from casemate.device.update.floors import FileFloorStore, Floors
from casemate.errors import HostError, NotFoundError, PolicyDeniedError, UntrustedDataError
from casemate.release import channels
from support import published, weights


def read(device, server, channel="stable"):
    with published.transport(server.url) as source:
        return offers.read_offer(published.client(device, source), channel)


def test_the_offer_is_the_signed_set_with_every_manifest(device, server):
    offer = read(device, server)
    (member,) = offer.members
    assert (offer.generation, offer.stopped, member.manifest.version) == (1, False, "1.0")
    assert member.member.manifest_sha256 == member.verified.sha256
    assert (offer.freshness.offline, offer.freshness.stale_days) == (False, 0)
    assert offer.signing.offline_days == 30
    assert offer.member("model") is member
    assert offer.member("policy") is None


def test_versions_seen_are_floors_before_a_target_is_read(device, server):
    server.answer("targets/.*", lambda handler, path: handler.send_error(404) or True)
    with pytest.raises(NotFoundError):
        read(device, server)
    floors = FileFloorStore(device).read()
    assert {"root", "timestamp", "snapshot", "targets", "channels", "models"} <= set(floors.versions)
    assert floors.clock > 0


def test_when_nothing_changed_a_check_is_two_requests_and_the_targets(device, server):
    read(device, server)
    server.asked.clear()
    with published.transport(server.url) as source:
        published.client(device, source).refresh()
    assert server.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_an_unknown_channel_is_not_found(device, server):
    with pytest.raises(NotFoundError, match="channels/other"):
        read(device, server, "other")


def test_a_manifest_changed_on_the_server_is_refused(device, server, repository):
    (path,) = (repository.public / "targets/model/tiny/1.0").iterdir()
    path.write_bytes(path.read_bytes().replace(b'"1.0"', b'"9.0"'))
    with pytest.raises(UntrustedDataError) as caught:
        read(device, server)
    assert caught.value.check == "target-digest"


def test_a_set_that_names_another_manifest_than_is_published_is_refused(device, server, repository):
    held = channels.current(repository, "stable")
    wrong = msgspec.structs.replace(held.members[0], manifest_sha256="0" * 64)
    channels._write(repository, [msgspec.structs.replace(held, members=(wrong,))])
    with pytest.raises(UntrustedDataError) as caught:
        read(device, server)
    assert caught.value.check == "channel-set-member"


def test_a_security_version_below_the_floor_is_denied(device, server):
    offer = read(device, server)
    offers.require_acceptable(offer, Floors(security={"model/tiny": 1}), (), "0.1.0", held=())
    with pytest.raises(PolicyDeniedError, match="no lower than 2") as caught:
        offers.require_acceptable(offer, Floors(security={"model/tiny": 2}), (), "0.1.0", held=())
    assert caught.value.exit_code == 11


def test_what_failed_before_is_denied_whatever_it_is_called(device, server, repository, tmp_path):
    offer = read(device, server)
    with pytest.raises(PolicyDeniedError, match="failed on this device"):
        offers.require_acceptable(offer, Floors(), {offer.content_digest}, "0.1.0", held=())
    renumbered = msgspec.structs.replace(channels.current(repository, "stable"), generation=40)
    channels._write(repository, [renumbered])
    again = read(device, server)
    assert (again.generation, again.content_digest) == (40, offer.content_digest)


def test_a_kind_that_the_device_has_may_not_vanish(device, server):
    """Control: the same set suits a device that never had a policy, or has only a model."""
    offer = read(device, server)
    for held in ((), ("model",)):
        offers.require_acceptable(offer, Floors(), (), "0.1.0", held=held)
    with pytest.raises(PolicyDeniedError, match="no policy any more"):
        offers.require_acceptable(offer, Floors(), (), "0.1.0", held=("model", "policy"))


def test_a_stopped_channel_is_denied(device, server, repository):
    channels.stop(repository, "stable", stopped=True)
    with pytest.raises(PolicyDeniedError, match="stopped"):
        offers.require_acceptable(read(device, server), Floors(), (), "0.1.0", held=())


@pytest.mark.parametrize(("needs", "has", "fits"), [("", "0.1.0", True), ("0.1.0", "0.1.0", True),
                                                    ("0.2", "0.1.9", False), ("0.10.0", "0.9.0", False),
                                                    ("later", "0.1.0", False), ("0.2", "0.2.0", True),
                                                    ("0.2.0", "0.2", True),
                                                    ("0.2.5", "0.2.rc1", False), ("0.2.5", "0.2.0rc1", False),
                                                    ("0.2.0", "0.2.0.dev3", False), ("0.2.0", "0.2.0rc1", False),
                                                    ("0.2.0", "0.3.0rc1", True), ("0.2.0", "0.2.0+local.1", True),
                                                    ("0.2.0rc1", "0.2.0", False), ("0.2.0", "new", False)])  # fmt: skip
def test_a_release_may_need_a_newer_casemate(device, server, needs, has, fits):
    offer = read(device, server)
    (member,) = offer.members
    requires = msgspec.structs.replace(member.manifest.requires, min_agent=needs)
    changed = msgspec.structs.replace(member.verified, manifest=msgspec.structs.replace(
        member.manifest, requires=requires))  # fmt: skip
    offer = msgspec.structs.replace(offer, members=(msgspec.structs.replace(member, verified=changed),))
    if fits:
        offers.require_acceptable(offer, Floors(), (), has, held=())
    else:
        with pytest.raises(HostError, match="needs casemate"):
            offers.require_acceptable(offer, Floors(), (), has, held=())


def test_a_change_in_the_middle_of_a_download_is_seen(device, server, repository, tmp_path):
    offer = read(device, server)
    with published.transport(server.url) as source:
        offers.still_offered(published.client(device, source), offer)
        channels.stop(repository, "stable", stopped=True)
        with pytest.raises(PolicyDeniedError, match="stopped"):
            offers.still_offered(published.client(device, source), offer)
        channels.stop(repository, "stable", stopped=False)
        published.put(repository, tmp_path / "spec", "1.1")
        with pytest.raises(PolicyDeniedError, match="something else"):
            offers.still_offered(published.client(device, source), offer)


def test_a_stop_by_the_publisher_ends_a_fetch_in_the_middle(device, server, repository, tmp_path):
    """Everything real: the channel is stopped when the first chunks are there; resumed, it goes on from them."""
    rng = np.random.default_rng(1)
    model = weights.model([rng.bytes(16_000 * weights.ROW) for _ in range(16)])
    published.put(repository, tmp_path / "spec", "2.0", model=model)
    with published.transport(server.url) as source:
        client = published.client(device, source)
        offer = offers.read_offer(client, "stable")
        (member,) = offer.members
        stops = []

        def look():
            if not stops:
                stops.append(channels.stop(repository, "stable", stopped=True))
            offers.still_offered(client, offer)

        place = tmp_path / "fetch" / member.member.release
        with pytest.raises(PolicyDeniedError, match="stopped"):
            fetch.fetch_release(source, member, place, bases=(), terms=Terms(watch=Watch(look, every=2 << 20)))
        before = server.bytes_of_chunks
        assert 0 < before < member.manifest.full.transfer_bytes
        channels.stop(repository, "stable", stopped=False)
        offers.still_offered(client, offer)
        fetch.fetch_release(source, member, place, bases=())
    assert server.bytes_of_chunks == member.manifest.full.transfer_bytes
