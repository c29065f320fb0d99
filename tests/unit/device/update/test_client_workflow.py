"""Every rule of the client workflow in the TUF specification (1.0.34, section 5): a test each, signed repositories.

A rule's test publishes a good state, lets the device see it, then breaks that one rule. What the device knew before has
to hold afterwards: an honest state is accepted again.
"""

from __future__ import annotations

import json
import time

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, MetaFile

from casemate.device.update.floors import FileFloorStore
from casemate.errors import NotFoundError, UntrustedDataError
from support.forge import Directory, client_of, trusting, with_one_target

NOW = float(int(time.time()))
DAY = 86_400.0
PATH = "model/demo/1/manifest.json"


@pytest.fixture
def forge(tmp_path):
    return with_one_target(tmp_path / "public", NOW, "models", "model/*/*/manifest.json", (PATH, b"good"))


@pytest.fixture
def device(tmp_path, forge):
    return Device(trusting(tmp_path / "update", forge), forge.public)


class Device:
    """One that remembers between runs, as a real one does."""

    def __init__(self, directory, public):
        self.directory = directory
        self.source = Directory(public)
        self.now = NOW

    def client(self):
        return client_of(self.directory, self.source, self.now)

    def read(self, path=PATH):
        client = self.client()
        client.refresh()
        return client.read(path, 1_000_000).data

    def refuses(self, check, path=PATH):
        with pytest.raises(UntrustedDataError) as caught:
            self.read(path)
        assert caught.value.check == check, caught.value.message

    @property
    def versions(self):
        return FileFloorStore(self.directory).read().versions


def stranger():
    return CryptoSigner.generate_ed25519()


def test_the_good_state_is_accepted(device):
    assert device.read() == b"good"
    assert device.versions == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2, "models": 1}


# --- 5.3 root


def test_5_3_3_root_is_followed_from_version_to_version(device, forge):
    for _ in range(3):
        forge.rotate("timestamp")
        forge.write("root")
    forge.current()
    assert device.read() == b"good"
    assert device.versions["root"] == 4
    assert [path for path in device.source.asked if "root" in path] == [f"metadata/{n}.root.json" for n in (2, 3, 4, 5)]


def test_5_3_3_a_root_beyond_the_limit_is_not_read(device, forge):
    device.read()
    forge.raw("metadata/2.root.json", bytes(600_000))
    device.refuses("transfer-size")


def test_5_3_4_a_root_needs_a_threshold_of_the_old_keys(device, forge):
    device.read()
    old = forge.keys["root"]
    forge.rotate("root")
    forge.write("root", by=[*forge.keys["root"], old[0]])
    device.refuses("metadata-threshold")


def test_5_3_4_a_root_needs_a_threshold_of_its_own_keys(device, forge):
    device.read()
    old = forge.keys["root"]
    forge.rotate("root")
    forge.write("root", by=[*old, forge.keys["root"][0]])
    device.refuses("metadata-threshold")


def test_5_3_4_both_thresholds_together_are_accepted(device, forge):
    device.read()
    old = forge.keys["root"]
    forge.rotate("root")
    forge.write("root", by=[*old[:2], *forge.keys["root"][:2]])
    assert device.read() == b"good"
    assert device.versions["root"] == 2


def test_5_3_4_one_key_signing_twice_is_one_signature(device, forge):
    device.read()
    forge.write("root", by=forge.keys["root"][:1])
    raw = json.loads((forge.public / "metadata/2.root.json").read_bytes())
    raw["signatures"] *= 2
    forge.raw("metadata/2.root.json", json.dumps(raw).encode())
    device.refuses("metadata-form")  # the same key id twice does not even parse


def test_5_3_4_keys_of_another_role_do_not_sign_for_root(device, forge):
    device.read()
    forge.write("root", by=forge.keys["targets"])
    device.refuses("metadata-threshold")


@pytest.mark.parametrize("version", [1, 3, 9])
def test_5_3_5_the_next_root_is_exactly_one_version_on(device, forge, version):
    device.read()
    forge.write("root", version=version)
    forge.raw("metadata/2.root.json", (forge.public / f"metadata/{version}.root.json").read_bytes())
    device.refuses("metadata-rollback")


def test_5_3_7_a_new_root_holds_although_the_rest_failed(device, forge):
    device.read()
    saved = forge.save()
    stolen = forge.keys["timestamp"]
    forge.rotate("timestamp")
    forge.write("root")
    forge.current()
    forge.raw("metadata/timestamp.json", b"{}")
    device.refuses("metadata-form")
    forge.restore(saved)  # the old root's files again: the thief of the old key answers
    forge.keys["timestamp"] = stolen
    forge.write("timestamp")
    device.refuses("metadata-threshold")


def test_5_3_10_an_expired_root_is_refused(device, forge):
    forge.write("root", days=-1)
    forge.current()
    device.refuses("metadata-expired")


def test_5_3_10_an_expired_root_on_the_way_to_a_good_one_is_followed(device, forge):
    forge.write("root", days=-1)
    forge.write("root")
    forge.current()
    assert device.read() == b"good"


def test_5_3_11_after_a_fast_forward_the_new_online_keys_start_over(device, forge):
    """A thief of both online keys signs the highest versions; the device is not lost when the keys are replaced."""
    device.read()
    forge.write("snapshot", version=1 << 40)
    forge.md["timestamp"].signed.snapshot_meta = MetaFile(1 << 40)
    forge.write("timestamp", version=1 << 40)
    device.read()
    assert device.versions["timestamp"] == 1 << 40
    for role in ("snapshot", "timestamp"):
        forge.md[role].signed.version = 10
        forge.rotate(role)
    forge.write("root")
    forge.current()
    assert device.read() == b"good"
    assert device.versions["timestamp"] == 11
    assert device.versions["root"] == 2


def test_5_3_11_without_new_keys_nothing_starts_over(device, forge):
    device.read()
    forge.write("timestamp", version=1 << 40)
    device.read()
    forge.md["timestamp"].signed.version = 10
    forge.write("root")
    forge.current()
    device.refuses("metadata-rollback")


# --- 5.4 timestamp


def test_5_4_1_a_timestamp_beyond_the_limit_is_not_read(device, forge):
    forge.raw("metadata/timestamp.json", bytes(20_000))
    device.refuses("transfer-size")


def test_5_4_1_no_timestamp_is_no_repository(device, forge):
    (forge.public / "metadata/timestamp.json").unlink()
    with pytest.raises(NotFoundError):
        device.read()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "models"])
def test_5_4_2_5_5_3_5_6_3_a_strangers_signature_is_none(device, forge, role):
    forge.write(role, by=[stranger()])
    if role not in {"timestamp", "snapshot"}:
        forge.current()
    if role == "snapshot":
        forge.md["timestamp"].signed.snapshot_meta = MetaFile(forge.md["snapshot"].signed.version)
        forge.write("timestamp")
    device.refuses("metadata-threshold")


@pytest.mark.parametrize(
    ("role", "signer"),
    [("timestamp", "snapshot"), ("snapshot", "timestamp"), ("targets", "models"), ("models", "targets")],
)
def test_5_4_2_5_5_3_5_6_3_another_roles_key_does_not_sign(device, forge, role, signer):
    forge.write(role, by=forge.keys[signer][:1])
    if role == "snapshot":
        forge.md["timestamp"].signed.snapshot_meta = MetaFile(forge.md["snapshot"].signed.version)
        forge.write("timestamp")
    elif role != "timestamp":
        forge.current()
    device.refuses("metadata-threshold")


def test_5_4_2_metadata_of_another_role_in_its_place_is_refused(device, forge):
    forge.raw("metadata/timestamp.json", (forge.public / "metadata/2.snapshot.json").read_bytes())
    device.refuses("metadata-form")


def test_5_4_2_a_changed_byte_is_no_signature(device, forge):
    raw = (forge.public / "metadata/timestamp.json").read_bytes()
    changed = raw.replace(b'"version":2', b'"version":3')
    assert changed != raw
    forge.raw("metadata/timestamp.json", changed)
    device.refuses("metadata-threshold")


def test_5_4_3_1_a_timestamp_does_not_go_back(device, forge):
    saved = forge.save()
    forge.current()
    device.read()
    forge.restore(saved)
    device.refuses("metadata-rollback")


def test_5_4_3_1_the_same_timestamp_again_is_fine(device):
    assert device.read() == device.read()


def test_5_4_3_2_a_newer_timestamp_may_not_name_an_older_snapshot(device, forge):
    forge.current()
    device.read()
    forge.md["timestamp"].signed.snapshot_meta = MetaFile(1)
    forge.write("timestamp")
    device.refuses("metadata-rollback")


def test_5_4_4_a_frozen_timestamp_is_refused_after_its_day(device):
    device.read()
    device.now += DAY + 1
    device.refuses("metadata-expired")


# --- 5.5 snapshot


def test_5_5_1_a_snapshot_beyond_the_limit_is_not_read(device, forge):
    forge.raw("metadata/2.snapshot.json", bytes(2_000_001))
    device.refuses("transfer-size")


def test_5_5_2_a_snapshot_must_have_the_digest_that_the_timestamp_names(device, forge):
    version = forge.write("snapshot")
    forge.md["timestamp"].signed.snapshot_meta = MetaFile(version, hashes={"sha256": "0" * 64})
    forge.write("timestamp")
    device.refuses("metadata-digest")


def test_5_5_4_a_snapshot_of_another_version_than_the_timestamps_is_a_mix(device, forge):
    forge.current()
    forge.raw("metadata/3.snapshot.json", (forge.public / "metadata/2.snapshot.json").read_bytes())
    device.refuses("metadata-rollback")


@pytest.mark.parametrize("role", ["targets", "models"])
def test_5_5_5_a_snapshot_takes_no_role_back(device, forge, role):
    forge.publish("targets", "models")
    device.read()
    forge.md[role].signed.version -= 1
    forge.current()
    device.refuses("metadata-rollback")


def test_5_5_5_a_snapshot_loses_no_role(device, forge):
    device.read()
    del forge.md["snapshot"].signed.meta["models.json"]
    forge.md["timestamp"].signed.snapshot_meta = MetaFile(forge.write("snapshot"))
    forge.write("timestamp")
    device.refuses("metadata-form")


def test_5_5_6_an_expired_snapshot_is_refused_though_the_timestamp_is_fresh(device, forge):
    forge.write("snapshot", days=-1)
    forge.md["timestamp"].signed.snapshot_meta = MetaFile(forge.md["snapshot"].signed.version)
    forge.write("timestamp")
    device.refuses("metadata-expired")


# --- 5.6 targets and delegations


def test_5_6_1_targets_beyond_the_limit_are_not_read(device, forge):
    forge.raw("metadata/2.targets.json", bytes(5_000_001))
    device.refuses("transfer-size")


@pytest.mark.parametrize("role", ["targets", "models"])
def test_5_6_2_targets_must_have_the_digest_that_the_snapshot_names(device, forge, role):
    meta = forge.md["snapshot"].signed.meta
    meta[f"{role}.json"] = MetaFile(forge.md[role].signed.version, hashes={"sha256": "0" * 64})
    forge.md["timestamp"].signed.snapshot_meta = MetaFile(forge.write("snapshot"))
    forge.write("timestamp")
    device.refuses("metadata-digest")


@pytest.mark.parametrize(("role", "version"), [("targets", 2), ("models", 1)])
def test_5_6_4_targets_of_another_version_than_the_snapshots_are_a_mix(device, forge, role, version):
    forge.publish(role)
    old = (forge.public / f"metadata/{version}.{role}.json").read_bytes()
    forge.raw(f"metadata/{version + 1}.{role}.json", old)
    device.refuses("metadata-rollback")


@pytest.mark.parametrize("role", ["targets", "models"])
def test_5_6_5_expired_targets_are_refused(device, forge, role):
    forge.publish(role, days=-1)
    device.refuses("metadata-expired")


def test_5_6_3_targets_need_their_threshold(device, forge):
    forge.publish("targets", by=forge.keys["targets"][:1])
    device.refuses("metadata-threshold")


def test_5_6_7_a_delegated_role_has_a_threshold_of_its_own(device, forge):
    forge.delegate("os", ["os/*/*/manifest.json"], threshold=2, keys=2)
    forge.put("os", "os/image/1/manifest.json", b"image")
    forge.publish("targets", "os", "models")
    assert device.read("os/image/1/manifest.json") == b"image"
    forge.publish("os", by=forge.keys["os"][:1])
    device.refuses("metadata-threshold", "os/image/1/manifest.json")


@pytest.mark.parametrize("path", ["policy/demo/1/manifest.json", "model/a/b/c/manifest.json", "channels/stable.json"])
def test_5_6_7_a_role_says_nothing_outside_its_paths(device, forge, path):
    forge.put("models", path, b"evil")
    forge.publish("models")
    with pytest.raises(NotFoundError):
        device.read(path)


def test_5_6_7_the_first_delegation_that_matches_decides(device, forge):
    forge.delegate("later", ["model/*/*/manifest.json"])
    forge.put("later", PATH, b"evil")
    forge.put("later", "model/other/1/manifest.json", b"evil")
    forge.publish("targets", "later")
    assert device.read() == b"good"
    with pytest.raises(NotFoundError):  # `models` is terminating: nobody is asked after it
        device.read("model/other/1/manifest.json")


def test_5_6_7_a_circle_of_delegations_ends(device, forge):
    forge.delegate("deep", ["model/*"], parent="models", terminating=False)
    forge.md["deep"].signed.delegations = forge.copy_of("models").signed.delegations
    forge.md["deep"].signed.delegations.roles["models"] = DelegatedRole(
        "models", [forge.keys["models"][0].public_key.keyid], 1, False, paths=["model/*"]
    )
    forge.publish("models", "deep", "targets")
    with pytest.raises(NotFoundError):
        device.read("model/none/1/manifest.json")


def test_5_6_7_a_delegation_whose_key_was_replaced_no_longer_counts(device, forge):
    device.read()
    old = forge.keys["models"]
    signed = forge.md["targets"].signed
    signed.revoke_key(old[0].public_key.keyid, "models")
    forge.keys["models"] = [stranger()]
    signed.add_key(forge.keys["models"][0].public_key, "models")
    forge.publish("targets")
    device.refuses("metadata-threshold")
    forge.publish("models")
    assert device.read() == b"good"


def test_5_6_a_top_level_key_was_replaced_and_the_old_one_no_longer_counts(device, forge):
    device.read()
    old = forge.keys["targets"]
    forge.rotate("targets")
    forge.write("root")
    forge.publish("targets", by=old)
    device.refuses("metadata-threshold")
    forge.publish("targets")
    assert device.read() == b"good"


# --- 5.7 the target


def test_5_7_2_a_target_must_be_the_one_that_is_named(device, forge):
    (path,) = (forge.public / "targets/model/demo/1").iterdir()
    path.write_bytes(b"evil")
    device.refuses("target-digest")


def test_5_7_2_a_target_longer_than_named_is_not_read(device, forge):
    (path,) = (forge.public / "targets/model/demo/1").iterdir()
    path.write_bytes(b"good and more")
    device.refuses("transfer-size")


def test_5_7_2_a_target_beyond_what_its_kind_may_be_is_not_asked_for(device, forge):
    forge.put("models", PATH, bytes(1_000_001))
    forge.publish("models")
    device.source.asked.clear()
    device.refuses("target-size")
    assert not [path for path in device.source.asked if path.startswith("targets/")]


def test_5_7_3_with_consistent_snapshots_the_digest_stands_before_the_name(device):
    device.read()
    (asked,) = [path for path in device.source.asked if path.startswith("targets/")]
    folder, _, name = asked.rpartition("/")
    assert folder == "targets/model/demo/1"
    assert name.endswith(".manifest.json")
    assert len(name.partition(".")[0]) == 64


def test_after_each_refusal_an_honest_state_is_accepted_again(device, forge):
    device.read()
    saved = forge.save()
    for role in ("timestamp", "targets", "models"):
        forge.write(role, by=[stranger()])
        if role != "timestamp":
            forge.current()
        device.refuses("metadata-threshold")
        forge.restore(saved)
        for name in ("snapshot", "timestamp"):
            forge.md[name].signed.version += 10
        forge.publish("targets", "models")
        assert device.read() == b"good"
        saved = forge.save()
