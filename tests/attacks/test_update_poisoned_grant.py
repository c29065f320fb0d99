"""A mirror without any key serves a grant of its own making, so that a good update fails and is denied for ever.

A grant is not signed: anybody can seal any key to a device's public key. What does not open with it is therefore no
evidence against a release. (What is bad by its maker's own signature is denied: `tests/system/test_update_device.py`.)
"""

from __future__ import annotations

import base64
from types import SimpleNamespace

import pytest

from casemate.crypto.secret import Secret
from casemate.device.update import obtain
from casemate.errors import UntrustedDataError
from casemate.formats import grant
from support import gguf_files, mirror
from support.updates import Follower, ReleaseHost

RELEASE = "model/saffron/1.0"


@pytest.fixture
def host(tmp_path):
    host = ReleaseHost(tmp_path / "host")
    host.init()
    host.publish(host.build("1.0", security=1, files={"saffron.gguf": gguf_files.tiny()}))
    host.offer(RELEASE)
    return host


@pytest.fixture
def device(tmp_path, host):
    device = Follower(tmp_path / "device" / "home")
    device.home.parent.mkdir()
    host.grant(device.recipient, RELEASE)
    with mirror.serving(host.public) as server:
        device.follow(host, server.url)
        yield device


def wrong_key(release: str, recipient: str) -> bytes:
    public = base64.urlsafe_b64decode(recipient.partition(":")[2] + "==")
    return grant.make(Secret.random(), release, public)


def test_control_a_device_that_blames_the_content_for_it_denies_a_good_release(monkeypatch):
    def does_not_open(*_):
        raise UntrustedDataError("chunk 0 does not open with its key", check="payload-chunk")

    monkeypatch.setattr(obtain.fetch, "fetch_grant", lambda *_: b"")
    monkeypatch.setattr(obtain.fetch, "fetch_sealed", lambda *_: b"")
    port = SimpleNamespace(open_release=does_not_open)
    work = obtain._Work(
        SimpleNamespace(port=port, recipient=""), None, None, good=None, number=1, watch=None,
        pacer=SimpleNamespace(taken=None),
    )  # fmt: skip
    member = SimpleNamespace(kind="model", name="saffron", release="", gate=None)
    offered = SimpleNamespace(manifest=SimpleNamespace(release=""), member=member, raw=b"")
    with pytest.raises(UntrustedDataError):
        work._open(offered)
    monkeypatch.setattr(obtain, "_NOBODYS_WORD", ())
    with pytest.raises(obtain.BadContent):  # what `obtain` denies for ever
        work._open(offered)


@pytest.mark.parametrize("forge", [wrong_key, lambda *_: b"{}"], ids=["another key", "no grant at all"])
def test_a_forged_grant_does_not_put_a_release_on_the_deny_list(host, device, forge):
    (file,) = (host.public / "grants").glob("*/*.json")
    honest = file.read_bytes()
    file.write_bytes(forge(file.parent.name, device.recipient))
    assert device.update("apply", exit_code=10)["error"]["check"] in ("payload-chunk", "grant-form")
    assert device.status["denied"] == []
    file.write_bytes(honest)
    assert device.update("apply")["state"] == "ARMED"
