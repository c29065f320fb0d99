"""Updates end to end: a device follows a release repository behind a plain web server, while it is used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import mirror, updates
from support.device import Device, running
from support.streaming import Streamer, streaming
from support.updates import Follower, ReleaseHost

V1, V2, V3 = (f"model/saffron/{number}.0" for number in (1, 2, 3))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> ReleaseHost:
    return updates.template(tmp_path_factory.mktemp("releases") / "host")


@pytest.fixture
def host(published: ReleaseHost, tmp_path: Path) -> ReleaseHost:
    return updates.copied(published, tmp_path / "host")


@pytest.fixture
def server(host: ReleaseHost) -> Iterator[mirror.Mirror]:
    with mirror.serving(host.public, rate=8e6) as running:
        yield running


@pytest.fixture
def device(tmp_path: Path, host: ReleaseHost, server: mirror.Mirror) -> Follower:
    """A device that trusts the repository, with grants for all releases; nothing is offered yet."""
    follower = Follower(tmp_path / "device" / "home")
    follower.home.parent.mkdir()
    host.grant(follower.recipient, V1, V2, V3)
    follower.follow(host, server.url)
    return follower


def test_a_device_is_updated_while_it_is_used_and_never_goes_backwards(host, server, device):
    host.offer(V1)
    assert device.update("check", exit_code=3)["available"]
    assert device.update("apply")["state"] == "ARMED"
    with running(device.home) as up:
        wait_for(device, "GOOD")
        unlimited(up)
        assert up.status["models"][0]["container"] == "saffron.g1"
        # a difference, live
        host.offer(V2)
        before = server.bytes_of_chunks
        clients = [Streamer(up.endpoint, up.key) for _ in range(2)]
        with streaming(*clients):
            time.sleep(0.5)
            waiting = device.update("check", exit_code=3)
            assert waiting["bytes"] < waiting["full_bytes"] * 0.05
            applied = device.update("apply")
            time.sleep(0.5)
        assert (applied["state"], applied["way"], applied["generation"]) == ("GOOD", "beside", 2)
        assert server.bytes_of_chunks - before < waiting["full_bytes"] * 0.05
        assert [client.failures for client in clients] == [[], []]
        assert all(client.answers for client in clients)
        assert device.update("check")["available"] is False
        # a generation that fails its smoke prompts goes back by itself
        host.offer(V3)
        with streaming(*clients[:1]):
            failed = device.update("apply", exit_code=1)
        assert "smoke prompt" in failed["error"]["message"]
        assert clients[0].failures == []
        state = device.status
        assert (state["state"], state["good"], state["trial"], len(state["denied"])) == ("ROLLED_BACK", 2, None, 1)
        assert up.refresh()["models"][0]["container"] == "saffron.g2"
        assert device.update("apply", exit_code=11)["error"]["code"] == "policy_denied"
        # never backwards
        assert device.update("confirm")["state"] == "ROLLED_BACK"
        assert device.status["floor"] == {"model/saffron": 2}
        host.offer(V1)
        assert "security version" in device.update("check", exit_code=11)["error"]["message"]
        codes = [event["event"]["metadata"]["event_code"] for event in up.events("update_")]
    assert [code for code in codes if code.startswith("update_")] == [
        "update_trusted", "update_staged", "update_trial", "update_good",
        "update_staged", "update_trial", "update_good",
        "update_staged", "update_trial", "update_rolled_back", "update_floor_raised",
    ]  # fmt: skip
    assert sorted(path.name for path in (device.home / "models").glob("*.cmodel")) == ["saffron.g2.cmodel"]


def unlimited(up: Device) -> None:
    """Let the default app ask as often as it likes."""
    policy = up.home.parent / "busy.toml"
    policy.write_text("schema = 1\nrequests_per_minute = 0\n")
    up.cli("app", "policy", "default", str(policy))
    time.sleep(1)


def wait_for(device: Follower, state: str, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while (found := device.status)["state"] != state:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
