"""A gated model that comes with a release, for whoever wants it without its gate: a mirror, a thief, an old device.

Each attack has its control: the same thing with the defence off, or with the fleet's key, works.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import msgspec
import pytest

from casemate.clock import SystemClock
from casemate.crypto import hpke
from casemate.crypto.secret import Secret
from casemate.device import containers, vault
from casemate.device.channel import pair
from casemate.device.update import offer
from casemate.device.update.floors import Floors
from casemate.device.workshop import Workshop
from casemate.errors import HostError, NotAuthorisedError, PolicyDeniedError, UntrustedDataError, UsageError
from casemate.formats import channel_set, grant, ipc, lease
from casemate.formats import manifest as fmt
from casemate.formats.channel_set import ChannelSet, Member
from casemate.formats.container import BrokerSlot
from casemate.formats.gate import Gate, private_of, public_of
from casemate.formats.keystore import key_id
from casemate.formats.lease import LeasedKey
from casemate.release import channels, grants
from casemate.release import delta as planner
from support import gguf_files, homes, published, releases

PLAIN = gguf_files.tiny()
BROKERS = bytes(range(100, 132))


def gate(level="L2", key=BROKERS, model="demo"):
    return Gate(model, level, public_of(Secret(key)))


def leased(level="L2", key=BROKERS, model="demo"):
    return LeasedKey("shop", model, key_id(Secret(key)), level, Secret(key))


MADE = releases.release(PLAIN, gate=gate())
PUBLISHED = grant.make(Secret(releases.KEY), MADE.manifest.release, gate().recipient)
"""What the publisher puts beside the release: its content key, for the gate."""


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A vault of a home without any process, asked about releases as its agent does."""
    bench = homes.make(tmp_path, monkeypatch)
    with bench.unlock() as keystore:
        made = vault.Vault(bench.home, keystore, lambda *events: bench.events.extend(events), SystemClock(), {})

        def take(key=None, *, release=MADE, manifest=None, ticket=PUBLISHED, name="demo.g1", base="", which=0):
            manifest = manifest or release.manifest
            payload = release.manifest.payloads[which].id
            request = ipc.Transcode(
                1, fmt.encode(manifest), ticket, release.sealed, payload, "model.gguf", name, base,
                gate="demo" if key else "", keyed=key is not None,
            )  # fmt: skip
            fds = [_memory(release.stream(payload)), *([_memory(lease.hand(key))] if key else [])]
            try:
                return made.release(request, fds, lambda: None)
            finally:
                for fd in fds:
                    os.close(fd)

        def load(key=None, name="demo.g1"):
            ours, theirs = pair()
            fd = _memory(lease.hand(key)) if key else None
            with ours, theirs:
                return made.load(ipc.Load(name, "", leased=key is not None), ours, lambda: None, fd)

        yield SimpleNamespace(
            take=take,
            load=load,
            bench=bench,
            owner=keystore.owner_public,
            names=lambda: sorted(path.name for path in bench.home.models.iterdir()),
        )


def _memory(data):
    fd = os.memfd_create("data", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def test_control_the_leased_key_makes_a_container_that_nothing_else_opens(device):
    assert isinstance(device.take(leased()), ipc.Transcoded)
    with containers.open_container(homes.container_of(device.bench, "demo.g1")) as opened:
        (slot,) = opened.container.slots
    assert isinstance(slot, BrokerSlot)
    assert (slot.fleet, slot.model, slot.min_assurance) == ("shop", "demo", "L2")
    assert isinstance(device.load(leased()), ipc.Loaded)
    assert device.load().code == "policy_denied"
    assert isinstance(device.take(leased()), ipc.Transcoded)  # the same again finds the work done
    assert device.bench.said().count("model_added") == 1
    assert PLAIN[:64] not in homes.container_of(device.bench, "demo.g1").read_bytes()


def test_a_disk_and_the_keys_of_its_home_do_not_open_what_a_mirror_serves(device):
    """The thief has the home, its keystore, and every published file; no lease."""
    assert device.take().code == "policy_denied"
    with device.bench.unlock() as keystore, keystore.owner_private() as private, pytest.raises(NotAuthorisedError):
        grant.open_grant(PUBLISHED, MADE.manifest.release, private, keystore.owner_public)
    assert device.names() == []
    plain = releases.release(PLAIN)  # the control: what is not gated opens with just these
    ticket = grant.make(Secret(releases.KEY), plain.manifest.release, device.owner)
    assert isinstance(device.take(release=plain, ticket=ticket), ipc.Transcoded)
    assert isinstance(device.load(), ipc.Loaded)


def test_a_gate_that_is_stripped_on_its_way_is_refused_by_the_signed_digest():
    stripped = fmt.encode(msgspec.structs.replace(MADE.manifest, gate=None))
    honest = fmt.encode(MADE.manifest)
    named = {"path": MADE.manifest.target_path, "size": len(honest), "sha256": releases.digest(honest)}
    with pytest.raises(UntrustedDataError) as caught:
        fmt.verify(fmt.parse(stripped), **named)
    assert caught.value.check == "manifest-digest"
    assert fmt.verify(fmt.parse(honest), **named).manifest.gate == gate()  # the control


def test_who_signs_manifests_alone_or_sets_alone_cannot_take_a_gate_away():
    """Each of the two roles says the gate; a device wants both to say the same."""
    for inside, outside in ((None, gate()), (gate(), None), (gate("L3"), gate("L2"))):
        made = msgspec.structs.replace(MADE.manifest, gate=inside)
        raw = fmt.encode(made)
        member = _member(raw, gate=outside)
        client = SimpleNamespace(
            read=lambda _path, _limit, raw=raw: SimpleNamespace(data=raw, sha256=releases.digest(raw))
        )
        with pytest.raises(UntrustedDataError) as caught:
            offer._read_member(client, member)
        assert caught.value.check == "channel-set-member"
        offer._read_member(client, _member(raw, gate=inside))  # the control


def _member(raw, **more):
    made = fmt.parse(raw).claimed
    return Member(made.kind, made.name, made.version, made.security_version, made.release, releases.digest(raw), **more)


def test_an_update_process_that_was_taken_over_gets_no_ungated_container(device, monkeypatch):
    """It talks to the network, and hands the vault a manifest of its own making."""
    stripped = msgspec.structs.replace(MADE.manifest, gate=None)
    assert device.take(manifest=stripped).code == "not_authorised"  # the grant is for the gate
    own = grant.make(Secret(releases.KEY), MADE.manifest.release, device.owner)  # even had it the content key
    assert device.take(manifest=stripped, ticket=own).check == "sealed-gate"
    other = Secret.random()
    theirs = Gate("demo", "L2", public_of(other))  # or a gate that it has the key of
    reply = device.take(
        LeasedKey("shop", "demo", key_id(other), "L2", Secret(other.reveal())),
        manifest=msgspec.structs.replace(MADE.manifest, gate=theirs),
        ticket=grant.make(Secret(releases.KEY), MADE.manifest.release, theirs.recipient),
    )
    assert reply.check == "sealed-gate"
    assert device.names() == []
    careless = releases.release(PLAIN)  # the control: a sealed part that says nothing of a gate
    assert isinstance(device.take(release=careless, ticket=own), ipc.Transcoded)


def test_a_key_of_less_or_of_something_else_makes_nothing(device):
    for key, words in (
        (leased(model="other"), "not of 'demo'"),
        (leased(key=bytes(32)), "another key of 'demo'"),
    ):
        reply = device.take(key)
        assert reply.code == "policy_denied"
        assert words in reply.message
    strict = releases.release(PLAIN, gate=gate("L3"))
    ticket = grant.make(Secret(releases.KEY), strict.manifest.release, gate().recipient)
    reply = device.take(leased("L2"), release=strict, ticket=ticket)
    assert reply.code == "policy_denied"
    assert "asks for L3 and the fleet gives 'demo' to L2" in reply.message
    assert device.names() == []
    assert isinstance(device.take(leased("L3"), release=strict, ticket=ticket), ipc.Transcoded)
    assert isinstance(device.load(leased("L3")), ipc.Loaded)
    reply = device.load(leased("L2"))  # the fleet asks for less from now on: the release's word still holds
    assert (reply.code, "asks for L3" in reply.message) == ("policy_denied", True)


def test_a_fleet_that_asks_for_more_than_the_release_gives_it_as_well(device):
    assert isinstance(device.take(leased("L3")), ipc.Transcoded)
    assert isinstance(device.load(leased("L3")), ipc.Loaded)


def test_a_difference_is_applied_between_gated_containers(device):
    newer = PLAIN[:-8] + bytes(8)
    assert isinstance(device.take(leased()), ipc.Transcoded)

    def source(data):
        return planner.describe("model.gguf", lambda at, length: data[at : at + length], len(data))

    changed = b"".join(planner.make_delta(source(PLAIN), source(newer)))
    made = releases.release(newer, version="3.0.0", delta=changed, base=PLAIN, gate=gate())
    ticket = grant.make(Secret(releases.KEY), made.manifest.release, gate().recipient)
    reply = device.take(leased(), release=made, ticket=ticket, name="demo.g2", base="demo.g1", which=1)
    assert isinstance(reply, ipc.Transcoded), reply
    assert isinstance(device.load(leased(), "demo.g2"), ipc.Loaded)


def test_without_a_running_device_nothing_of_it_is_opened(device):
    """A workshop has a vault and no TPM, lease or fleet. What asks it may even bring a key along."""
    ours, theirs = pair()
    with ours, theirs:
        shop = Workshop(ours, None, None)
        for request in (
            ipc.OpenRelease(1, b"", b"", b"", gate="demo"),
            ipc.OpenRelease(1, b"", b"", b"", keyed=True),
            ipc.Transcode(1, b"", b"", b"", "", "", "", gate="demo"),
        ):
            with pytest.raises(HostError, match="the running device proves itself"):
                shop._ask_vault(request, [])


def test_an_older_agent_refuses_what_it_does_not_know():
    """Its formats are those of today without the field: a gate it cannot see is not one that it passes over."""

    class OldMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        kind: str
        name: str
        version: str
        security_version: int
        release: str
        manifest_sha256: str

    class OldManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        schema: int
        release: str
        kind: str
        name: str
        version: str
        security_version: int
        requires: dict
        sealed: dict
        payloads: tuple

    for old, gated, plain in (
        (OldMember, _member(fmt.encode(MADE.manifest), gate=gate()), _member(fmt.encode(MADE.manifest))),
        (OldManifest, MADE.manifest, msgspec.structs.replace(MADE.manifest, gate=None)),
    ):
        with pytest.raises(msgspec.ValidationError, match="gate"):
            msgspec.json.decode(msgspec.json.encode(gated), type=old)
        raw = msgspec.json.encode(plain)  # the control: byte for byte what it always read
        assert msgspec.json.encode(msgspec.json.decode(raw, type=old)) == raw


def test_an_old_release_without_a_gate_does_not_come_back():
    """Before the soak is over no floor has risen yet: what runs gated stays gated unless its maker says otherwise."""
    plain = msgspec.structs.replace(MADE.manifest, gate=None)
    raw = fmt.encode(plain)
    offered = offer.Offered(_member(raw), fmt.VerifiedManifest(plain, releases.digest(raw)), raw)
    made = offer.Offer(
        channel_set.VerifiedChannelSet(ChannelSet(1, "stable", 1, (offered.member,)), "0" * 64), (offered,), None, None
    )

    def accept(**more):
        offer.require_acceptable(made, Floors(), (), "0.1.0", held=["model"], **more)

    with pytest.raises(PolicyDeniedError, match="is not gated"):
        accept(gated={"model/demo": plain.security_version})
    accept(gated={"model/demo": plain.security_version - 1})  # its maker raised it: that is what it is for
    accept()  # the control: floors alone let it pass, until they rise
    with pytest.raises(PolicyDeniedError, match="goes no lower"):
        offer.require_acceptable(
            made, Floors(security={"model/demo": plain.security_version + 1}), (), "0.1.0", held=["model"]
        )


def test_a_release_host_grants_it_to_its_gate_alone_and_never_below_a_gated_one(tmp_path):
    repository = published.create(tmp_path / "repository")
    recipient = grant.show_recipient(gate().recipient)
    more = f'gate = {{ model = "demo", min_assurance = "L2", recipient = "{recipient}" }}'
    record = published.put(repository, tmp_path / "made", "2.0", security=2, more=more)
    assert record.manifest.gate == gate()
    path = repository.public / grant.path(record.id, gate().recipient_id)
    with Secret(BROKERS) as key, private_of(key) as private:
        opened = grant.open_grant(path.read_bytes(), record.id, private, gate().recipient)
    sealed = (repository.public / record.manifest.sealed.path).read_bytes()
    assert fmt.open_sealed(record.manifest, sealed, opened).gate == gate()
    with pytest.raises(PolicyDeniedError, match="is gated"):
        grants.grant(repository, record, [hpke.generate()[1]])
    assert channels.promote(repository, "stable", [record]).members[0].gate == gate()
    with pytest.raises(UsageError, match="needs a higher security_version"):
        published.put(repository, tmp_path / "made", "2.1", security=2)
    free = published.put(repository, tmp_path / "made", "3.0", security=3)  # said on purpose
    assert free.manifest.gate is None
