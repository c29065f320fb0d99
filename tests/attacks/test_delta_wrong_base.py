"""A delta is applied to a file it was not made for: by mistake, by a mirror, or by somebody who wants another model.

A delta of copies and differences makes *something* of any base: a model that runs and answers, with weights nobody
evaluated. The control applies one with the checks off and gets such a model; each attack then meets one of the checks.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest

from casemate.clock import SystemClock
from casemate.crypto.secret import Secret
from casemate.device import vault
from casemate.errors import UntrustedDataError
from casemate.formats import delta as codec
from casemate.formats import gguf, grant, ipc
from casemate.formats import manifest as fmt
from casemate.release import delta as planner
from support import homes, releases, weights

RNG = np.random.default_rng(3)
TENSORS = [weights.blocks(RNG, 2000).tobytes() for _ in range(6)]
RIGHT = weights.model(TENSORS)
WRONG = weights.model([weights.noisy(data, RNG, 0.2) for data in TENSORS])  # as long, and another model
NEW = weights.model([weights.noisy(TENSORS[0], RNG, 0.05), *TENSORS[1:]])


def source(data: bytes) -> planner.Source:
    return planner.describe("model.gguf", lambda offset, length: data[offset : offset + length], len(data))


DELTA = b"".join(planner.make_delta(source(RIGHT), source(NEW)))


def reader(data: bytes) -> codec.ReadOld:
    return lambda offset, length: data[offset : offset + length]


def test_control_without_the_checks_the_wrong_base_makes_a_model_that_loads(monkeypatch):
    monkeypatch.setattr(codec, "_check_header", lambda stream, *_: stream.take(codec.HEADER_BYTES))
    monkeypatch.setattr(codec, "hashlib", SimpleNamespace(sha256=_AnyDigest))
    made = b"".join(map(bytes, codec.apply([DELTA], reader(WRONG), base=source_of(WRONG), new=source_of(NEW))))
    assert made != NEW
    facts = gguf.check_header(lambda offset, length: made[offset : offset + length], len(made)).facts
    assert facts.tensors == 6  # nothing about the file says that it is not the model


class _AnyDigest:
    """A digest that fits whatever it is held against."""

    def update(self, data: bytes) -> None:
        pass

    def digest(self) -> _AnyDigest:
        return self

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None


def source_of(data: bytes) -> codec.Identity:
    return codec.Identity(len(data), bytes.fromhex(releases.digest(data)))


def check_of(delta: bytes, old: bytes, base: bytes) -> str:
    """Return the check that refuses to apply *delta* when *old* is there and *base* is what it is taken for."""
    with pytest.raises(UntrustedDataError) as caught:
        b"".join(map(bytes, codec.apply([delta], reader(old), base=source_of(base), new=source_of(NEW))))
    return caught.value.check


def test_the_codec_refuses_the_wrong_base():
    assert check_of(DELTA, WRONG, WRONG) == "delta-base"


def test_a_delta_that_lies_about_its_base_makes_nothing():
    lying = codec.header(source_of(WRONG), source_of(NEW)) + DELTA[codec.HEADER_BYTES :]
    assert check_of(lying, WRONG, WRONG) == "delta-result"


def test_a_base_that_only_claims_to_be_the_right_one_makes_nothing():
    assert check_of(DELTA, WRONG, RIGHT) == "delta-result"


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A device with both models; asks its vault to make a third."""
    monkeypatch.setattr("casemate.device.models.inspect_file", homes.inspect_here)
    bench = homes.make(tmp_path, monkeypatch)
    bench.add(RIGHT, name="right")
    bench.add(WRONG, name="wrong")
    with bench.unlock() as keystore, Secret(releases.KEY) as key:
        made = vault.Vault(bench.home, keystore, lambda *events: bench.events.extend(events), SystemClock(), {})

        def ask(release: releases.Made, base: str):
            payload = release.manifest.payloads[1].id
            ticket = grant.make(key, release.manifest.release, keystore.owner_public)
            request = ipc.Transcode(
                1, fmt.encode(release.manifest), ticket, release.sealed, payload, "model.gguf", "new", base
            )
            stream = tmp_path / "stream"
            stream.write_bytes(release.stream(payload))
            fd = os.open(stream, os.O_RDONLY)
            try:
                return made.release(request, [fd], lambda: None)
            finally:
                os.close(fd)

        yield bench, ask


def names(bench) -> list[str]:
    return sorted(path.name for path in bench.home.models.iterdir())


def test_control_the_vault_makes_the_model_from_the_right_base(device):
    bench, ask = device
    assert isinstance(ask(releases.release(NEW, delta=DELTA, base=RIGHT), "right"), ipc.Transcoded)
    assert "new.cmodel" in names(bench)


def test_the_vault_refuses_another_model_as_the_base(device):
    bench, ask = device
    reply = ask(releases.release(NEW, delta=DELTA, base=RIGHT), "wrong")
    assert (reply.exit_code, reply.check) == (10, "delta-base")
    assert names(bench) == ["right.cmodel", "wrong.cmodel"]
    assert "model_refused" in bench.said()


def test_the_vault_refuses_a_model_renamed_to_the_bases_name(device):
    bench, ask = device
    homes.container_of(bench, "wrong").replace(homes.container_of(bench, "right"))
    reply = ask(releases.release(NEW, delta=DELTA, base=RIGHT), "right")
    assert (reply.exit_code, reply.check) == (10, "container-name")
    assert names(bench) == ["right.cmodel"]


def test_the_vault_refuses_a_release_that_lies_about_the_base(device):
    bench, ask = device
    lying = codec.header(source_of(WRONG), source_of(NEW)) + DELTA[codec.HEADER_BYTES :]
    reply = ask(releases.release(NEW, delta=lying, base=WRONG), "wrong")
    assert (reply.exit_code, reply.check) == (10, "delta-result")
    assert names(bench) == ["right.cmodel", "wrong.cmodel"]
