"""Updates end to end: a device follows a release repository behind a plain web server, while it is used."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casemate.device.update.state_file import StateFile
from casemate.formats import evidence
from support import mirror, updates
from support.device import Device, running
from support.streaming import Streamer, streaming
from support.swtpm import needs_swtpm, software_tpm
from support.updates import Follower, ReleaseHost

pytestmark = pytest.mark.timeout(600)

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


def test_killed_while_fetching_and_while_on_trial_it_goes_on(host, server, device):
    server.rate = 1e6
    host.offer(V1)
    with started(device, "fetch") as process:
        until(lambda: server.bytes_of_chunks > 1_500_000)
        process.kill()
    assert device.status["state"] == "FETCHING"
    before = server.bytes_of_chunks
    server.rate = 0.0
    fetched = device.update("fetch")
    assert server.bytes_of_chunks <= fetched["bytes"] + 64_000 + (1 << 20)
    assert server.bytes_of_chunks - before < fetched["bytes"]
    device.update("apply")
    with running(device.home) as up:
        wait_for(device, "GOOD")
        host.offer(V2)
        with started(device, "apply") as process:
            state = StateFile(device.home / "update")
            until(lambda: state.read().phase == "TRIAL")  # a command would look too late
            process.kill()
        assert device.update("apply")["state"] == "GOOD"
        assert up.refresh()["models"][0]["container"] == "saffron.g2"


@pytest.mark.long
@needs_swtpm
def test_what_a_running_device_switches_to_and_goes_back_to_is_measured_by_its_tpm(host, device, tmp_path):
    """A fleet holds a device's word against the generation that its TPM proves: also without a restart in between."""

    def measured() -> str:
        log = evidence.parse_log((device.home / "attester" / "events.json").read_bytes())
        return evidence.served(evidence.replay(log)[0])

    def said(up: Device, kind: str) -> str:
        return json.dumps(up.events(kind)[-1])

    host.offer(V1)
    device.update("apply")
    with (
        software_tpm(tmp_path / "tpm") as chip,
        running(device.home, environ={"CASEMATE_KEYSTORE_TPM": chip.tcti}) as up,
    ):
        wait_for(device, "GOOD")
        first = measured()
        assert first in said(up, "update_good")
        host.offer(V2)
        assert device.update("apply")["state"] == "GOOD"
        second = measured()
        assert second != first
        assert second in said(up, "update_good")
        host.offer(V3)
        device.update("apply", exit_code=1)
        assert measured() == second, "it went back, and proves what it left"


@pytest.mark.long
def test_a_signed_but_malformed_model_is_refused_and_never_tried_again(host, server, device):
    plain = bytearray(updates.MODEL.read_bytes())
    plain[4:8] = b"\xff\xff\xff\xff"  # a GGUF of no version there is
    updates.publish_carelessly(host, "9.0", bytes(plain))
    host.grant(device.recipient, "model/saffron/9.0")
    host.offer("model/saffron/9.0")
    error = device.update("apply", exit_code=10)["error"]
    assert error["check"].startswith("gguf-")
    assert list((device.home / "models").glob("*.cmodel")) == []
    state = device.status
    assert (state["state"], state["good"], len(state["denied"])) == ("ROLLED_BACK", None, 1)
    assert device.update("apply", exit_code=11)["error"]["code"] == "policy_denied"
    host.offer(V1)
    assert device.update("apply")["state"] == "ARMED"


@pytest.mark.long
def test_a_trial_that_takes_the_device_down_is_rolled_back_after_its_tries(host, server, device):
    host.offer(V1)
    device.update("apply")
    for left in (2, 1, 0):
        with running(device.home, ready=False) as up:
            until(lambda left=left: (now := device.status)["state"] == "TRIAL" and now["tries"] == left)
            up.stop(signal.SIGKILL)
    with running(device.home) as up:  # the demo model: there never was a good generation
        assert [row["name"] for row in up.status["models"]] == ["saffron"]
        assert "container" not in up.status["models"][0]
    state = device.status
    assert (state["state"], state["good"], state["trial"]) == ("ROLLED_BACK", None, None)
    assert "tries" in state["last_error"]


@pytest.mark.long
def test_a_device_without_a_network_takes_an_export(host, server, device, tmp_path):
    host.offer(V1)
    tar = tmp_path / "stick.tar"
    host.run("export", host.repository, tar, "--channel", "stable")
    device.update("trust", host.trust, "--url", "https://releases.invalid/")
    assert device.update("import", tar)["state"] == "STAGED"
    data = bytearray(tar.read_bytes())
    data[-3000] ^= 1
    (tmp_path / "bent.tar").write_bytes(data)
    assert device.update("apply")["state"] == "ARMED"
    with running(device.home):
        wait_for(device, "GOOD")
        device.update("rollback", "--yes", exit_code=5)
        device.update("import", tmp_path / "bent.tar", exit_code=10)


@pytest.mark.long
def test_a_policy_and_an_app_come_with_the_generation(host, server, device):
    policy = host.build("1.0", security=1, kind="policy", name="kitchen", files={"default.toml": STRICT})
    app = host.build("1.0", security=1, kind="app", name="page", files={"index.html": b"<h1>hello</h1>\n"})
    host.publish(policy, app)
    host.grant(device.recipient, "policy/kitchen/1.0", "app/page/1.0")
    host.offer(V1)
    device.update("apply")
    with running(device.home) as up:
        wait_for(device, "GOOD")
        host.offer("policy/kitchen/1.0", "app/page/1.0")
        applied = device.update("apply")
        assert (applied["state"], applied["way"]) == ("GOOD", "nothing to do"), "the model did not change"
        ask = Streamer(up.endpoint, up.key, question="hello " * 200)
        with streaming(ask):
            until(lambda: ask.failures)
        assert "context_length_exceeded" in ask.failures[0] or "too long" in ask.failures[0], ask.failures[0]
        page = device.home / "update" / "gen" / "2" / "app" / "index.html"
        assert page.read_bytes() == b"<h1>hello</h1>\n"
        assert page.stat().st_mode & 0o111 == 0
        assert up.cli("model", "rm", "saffron.g1", "--yes", check=False).returncode == 11
        # back, by hand: the app's own policy holds again
        assert device.update("rollback", "--yes")["generation"] == 1
        again = Streamer(up.endpoint, up.key, question="hello " * 200)
        with streaming(again):
            until(lambda: again.answers or again.failures)
        assert again.failures == []
        device.update("rollback", "--yes", exit_code=5)


STRICT = b"schema = 1\nmax_input_tokens = 50\nrequests_per_minute = 0\n"


@contextlib.contextmanager
def started(device: Follower, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run an update command in the background; it is gone when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "casemate", "update", *arguments],
        env=device.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(good: Callable[[], object], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not good():
        assert time.monotonic() < deadline
        time.sleep(0.02)
