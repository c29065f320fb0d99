from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from casemate.clock import SystemClock
from casemate.crypto.secret import Secret
from casemate.device import channel, containers, store, transcode, vault
from casemate.device.channel import Channel, ChannelClosed
from casemate.errors import OperationError
from casemate.formats import grant, ipc
from casemate.formats import manifest as fmt
from casemate.release import delta as planner
from support import gguf_files, homes, kill, releases, weights

RNG = np.random.default_rng(7)
TENSORS = [weights.blocks(RNG, 15_000).tobytes() for _ in range(9)]  # 2.4 MB: three chunks
OLD = weights.model(TENSORS)
NEW = weights.model([TENSORS[0], weights.noisy(TENSORS[1], RNG, 0.05), *TENSORS[2:]], more=b"n" * 900)


def source(data: bytes) -> planner.Source:
    return planner.describe("model.gguf", lambda offset, length: data[offset : offset + length], len(data))


def delta(old: bytes, new: bytes) -> bytes:
    return b"".join(planner.make_delta(source(old), source(new)))


MADE = releases.release(NEW, delta=delta(OLD, NEW), base=OLD)
FULL, DELTA = (payload.id for payload in MADE.manifest.payloads)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("casemate.device.models.inspect_file", homes.inspect_here)
    made = homes.make(tmp_path, monkeypatch)
    made.add(OLD, name="old")
    made.events.clear()
    return made


@pytest.fixture
def ask(bench):
    """Send the vault a request about a release; returns its reply."""
    with bench.unlock() as keystore, Secret(releases.KEY) as key:
        made = vault.Vault(bench.home, keystore, lambda *events: bench.events.extend(events), SystemClock(), {})

        def send(release=MADE, payload=DELTA, *, stream=None, sealed=None, to=None, **fields):
            ticket = grant.make(key, release.manifest.release, to or keystore.owner_public)
            sealed = release.sealed if sealed is None else sealed
            request = ipc.Transcode(
                1, fmt.encode(release.manifest), ticket, sealed, payload,
                **{"path": "model.gguf", "model": "new", "base": "old", **fields},
            )  # fmt: skip
            with piped(release.stream(payload) if stream is None else stream) as fd:
                return made.release(request, [fd], lambda: None)

        yield SimpleNamespace(send=send, vault=made, key=key, public=keystore.owner_public)


@contextlib.contextmanager
def piped(data: bytes):
    """A pipe that somebody else fills, as a download does."""
    reading, writing = os.pipe()

    def fill():
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield reading
    finally:
        os.close(reading)
        thread.join()


def content(bench, name="new") -> bytes:
    with bench.unlock() as keystore, store.opened_model(bench.home, keystore, name) as (opened, verified):
        return b"".join(bytes(plain) for _, _, plain in containers.open_chunks(opened.fd, verified))


def refused(bench, reply) -> str:
    """Return the check that failed, and see that nothing is left."""
    assert isinstance(reply, ipc.ReleaseRefused)
    assert sorted(path.name for path in bench.home.models.iterdir()) == ["old.cmodel"]
    assert content(bench, "old") == OLD
    return reply.check or reply.code


def test_an_old_container_and_a_delta_make_the_new_one(bench, ask):
    reply = ask.send()
    assert isinstance(reply, ipc.Transcoded), reply
    assert reply.digest == "sha256:" + releases.digest(NEW)
    assert content(bench) == NEW
    assert content(bench, "old") == OLD
    assert bench.said() == ["model_added"]
    assert bench.verify("new") == ""
    with bench.unlock() as keystore, store.opened_model(bench.home, keystore, "new") as (_, verified):
        assert verified.header.security_version == 2
        assert verified.labels.licence == "MIT"
        assert verified.labels.facts.tensors == 9


def test_a_full_payload_needs_no_old_container(bench, ask):
    reply = ask.send(payload=FULL, base="")
    assert isinstance(reply, ipc.Transcoded), reply
    assert content(bench) == NEW


def test_asking_again_finds_the_work_done(bench, ask):
    first, again = ask.send(), ask.send(stream=b"")
    assert (again.digest, again.bytes) == (first.digest, first.bytes)
    assert bench.said() == ["model_added"]


def test_another_model_of_the_name_is_never_replaced(bench, ask):
    assert refused(bench, ask.send(model="old")) == "busy"


def test_what_does_not_come_from_the_release_is_refused(bench, ask):
    stream = MADE.stream(DELTA)
    assert refused(bench, ask.send(stream=stream[:-1])) == "payload-truncated"
    assert refused(bench, ask.send(stream=b"")) == "payload-truncated"
    assert refused(bench, ask.send(stream=b"\0" + stream[1:])) == "payload-chunk"
    assert refused(bench, ask.send(stream=MADE.stream(FULL))) == "payload-chunk"
    assert refused(bench, ask.send(sealed=MADE.sealed[:-1] + b"\0")) == "sealed-digest"
    assert refused(bench, ask.send(payload="f" * 32, stream=b"")) == "manifest-payload"
    assert refused(bench, ask.send(path="other.gguf")) == "release-file"
    assert bench.said() == ["model_refused"] * 7


def test_a_chunk_moved_within_the_release_is_refused(bench, ask):
    sizes = [chunk.size for chunk in MADE.manifest.full.chunks]
    stream = MADE.stream(FULL)
    swapped = stream[sizes[0] : 2 * sizes[0]] + stream[: sizes[0]] + stream[2 * sizes[0] :]
    assert refused(bench, ask.send(payload=FULL, stream=swapped)) == "payload-chunk"


def test_a_delta_against_another_base_is_refused(bench, ask):
    other = releases.release(NEW, delta=delta(OLD, NEW), base=NEW)
    assert refused(bench, ask.send(other, other.manifest.payloads[1].id)) == "delta-base"


def test_a_delta_whose_header_names_another_base_is_refused(bench, ask):
    other = releases.release(NEW, delta=delta(NEW[:-1], NEW), base=OLD)
    assert refused(bench, ask.send(other, other.manifest.payloads[1].id)) == "delta-base"


def test_a_base_that_is_not_there_is_said_so(bench, ask):
    assert refused(bench, ask.send(base="missing")) == "not_found"
    assert refused(bench, ask.send(base="")) == "not_found"


def test_a_damaged_base_never_makes_a_model(bench, ask):
    path = homes.container_of(bench, "old")
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    reply = ask.send()
    assert reply.check == "container-chunk"
    assert not homes.container_of(bench, "new").exists()


def test_a_payload_that_makes_something_else_is_refused(bench, ask):
    lying = releases.release(NEW, claimed_digest="0" * 64)
    assert refused(bench, ask.send(lying, lying.manifest.full.id, base="")) == "release-digest"


def test_a_signed_but_malformed_model_is_refused(bench, ask):
    broken = releases.release(gguf_files.assemble(tensors=(), data=0))
    assert refused(bench, ask.send(broken, broken.manifest.full.id, base="")) == "gguf-kind"
    noise = releases.release(RNG.bytes(3000))
    assert refused(bench, ask.send(noise, noise.manifest.full.id, base="")) == "format"


def test_a_grant_for_another_device_opens_nothing(bench, ask):
    other = bytes(31) + b"\x09"
    assert refused(bench, ask.send(to=other)) == "not_authorised"


def test_a_full_disk_leaves_nothing(bench, ask):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limit[1]))
    try:
        reply = ask.send()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert refused(bench, reply) == "failed"


def test_without_room_nothing_is_begun(bench, ask, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_bavail=1, f_frsize=4096))
    assert refused(bench, ask.send()) == "failed"


def test_what_the_journal_did_not_take_is_not_there(bench, ask):
    def full(*_events):
        raise OperationError("the journal is full")

    ask.vault.journal_again(full)
    assert refused(bench, ask.send()) == "failed"


def test_a_kill_at_any_durable_step_leaves_a_model_or_nothing(bench, ask):
    fatal, ended = 1, False
    while not ended:
        ended = kill.run_and_die_at(fatal, lambda: msgspec.json.encode(ask.send()))
        containers.remove_leftovers(bench.home.models)
        names = sorted(path.name for path in bench.home.models.iterdir())
        assert names in (["old.cmodel"], ["new.cmodel", "old.cmodel"])
        if "new.cmodel" in names:
            assert content(bench) == NEW
            homes.container_of(bench, "new").unlink()
        fatal += 1
    assert content(bench, "old") == OLD
    assert fatal > 6


def test_plaintext_is_in_no_file_of_the_home(bench, ask):
    canary = TENSORS[4][1000:1032]
    assert canary in NEW
    ask.send()
    for path in bench.home.path.rglob("*"):
        assert not path.is_file() or canary not in path.read_bytes()


# --- what the update process asks besides ---------------------------------------------------------------------------


def test_the_sealed_part_is_opened_for_the_update(ask):
    ticket = grant.make(ask.key, MADE.manifest.release, ask.public)
    reply = ask.vault.release(ipc.OpenRelease(3, fmt.encode(MADE.manifest), ticket, MADE.sealed), [], lambda: None)
    assert msgspec.json.decode(reply.part, type=fmt.SealedPart) == MADE.part


def open_payload(ask, release, tmp_path):
    ticket = grant.make(ask.key, release.manifest.release, ask.public)
    request = ipc.OpenPayload(4, fmt.encode(release.manifest), ticket, release.manifest.full.id)
    out = tmp_path / "plain"
    with piped(release.stream(release.manifest.full.id)) as fd, out.open("wb") as target:
        return ask.vault.release(request, [fd, target.fileno()], lambda: None), out


def test_an_app_is_decrypted_to_a_file_and_a_model_never(ask, tmp_path):
    reply, out = open_payload(ask, MADE, tmp_path)
    assert (reply.code, out.read_bytes()) == ("policy_denied", b"")
    app = releases.release(b"program" * 400_000, path="bin/app", kind="app")
    reply, out = open_payload(ask, app, tmp_path)
    assert isinstance(reply, ipc.PayloadOpened), reply
    assert out.read_bytes() == b"program" * 400_000


def test_an_app_never_becomes_a_container(bench, ask):
    app = releases.release(NEW, kind="app")
    assert refused(bench, ask.send(app, app.manifest.full.id, base="")) == "release-kind"


def test_over_its_link_the_vault_answers_pings_meanwhile_and_closes_what_it_was_lent(bench, ask, tmp_path):
    ticket = grant.make(ask.key, MADE.manifest.release, ask.public)
    request = ipc.Transcode(9, fmt.encode(MADE.manifest), ticket, MADE.sealed, DELTA, "model.gguf", "new", "old")
    (tmp_path / "stream").write_bytes(MADE.stream(DELTA))
    agent, child = channel.pair()
    before = len(os.listdir("/proc/self/fd"))
    with (tmp_path / "stream").open("rb") as file, agent, child:
        control = Channel(agent, ipc.ChildToAgent)
        control.send(request, [file.fileno()])
        control.send(ipc.Ping(1))
        answers: list[object] = []

        def listen() -> None:
            answers.extend(control.recv(10.0)[0] for _ in range(2))
            agent.shutdown(socket.SHUT_RDWR)

        listener = threading.Thread(target=listen)
        listener.start()
        with pytest.raises(ChannelClosed):
            vault.serve(SimpleNamespace(control=Channel(child, ipc.AgentToChild)), ask.vault)
        listener.join()
    assert answers[0] == ipc.Pong(1)
    assert (answers[1].id, answers[1].digest) == (9, "sha256:" + releases.digest(NEW))
    assert content(bench) == NEW
    assert len(os.listdir("/proc/self/fd")) <= before


def test_reading_anywhere_gives_what_is_there(bench):
    with bench.unlock() as keystore, store.opened_model(bench.home, keystore, "old") as (opened, verified):
        opener = lambda index, sealed, out: transcode.fmt.open_chunk(verified, index, sealed, out)  # noqa: E731
        with transcode.ContainerReader(opened.fd, verified.header, opener) as reader:
            for offset, length in [(0, 1), (1 << 20, 5), ((1 << 20) - 3, 7), (5, 2_000_000), (len(OLD) - 2, 9)]:
                assert reader.read(offset, length) == OLD[offset : offset + length]
            assert b"".join(map(bytes, reader.all())) == OLD
