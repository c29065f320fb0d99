"""`casemate up` as a user meets it: the real client, deaths of every process, a second device, a clean stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import openai
import pytest

from support.device import descendants, running

CONTRACT = 5.0
SLACK = 5  # a contract deadline is asserted at five times its value


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    root = tmp_path_factory.mktemp("up")
    root.chmod(0o755)
    with running(root / "home") as device:
        yield device


def client(device):
    return openai.OpenAI(base_url=f"{device.endpoint}/v1", api_key=device.key, max_retries=0, timeout=30)


def ask(device, **more):
    return client(device).chat.completions.create(
        model="saffron",
        messages=[{"role": "user", "content": "We are four people, can you find something Japanese, budget price?"}],
        temperature=0,
        max_tokens=60,
        **more,
    )


def eventually(condition, within=30.0):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_the_unmodified_openai_client_gets_a_streamed_answer(device):
    pieces, usage = [], None
    for chunk in ask(device, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "Japanese" in "".join(pieces)
    assert len(pieces) > 5
    assert usage.completion_tokens > 5


def test_status_has_the_contract_fields(device):
    status = device.refresh()
    assert status["schema"] == 1
    assert status["ready"] is True
    assert status["endpoint"].startswith("http://127.0.0.1:")
    assert status["metrics"].startswith("http://127.0.0.1:")
    assert status["pid"] == device.process.pid
    assert status["assurance"] in {"L0", "L1", "L2"}
    assert status["assurance_by"] == "local"
    assert [model["name"] for model in status["models"]] == ["saffron"]
    assert status["default_key_file"] == str(device.home / "run" / "default-app.key")


def test_a_second_up_on_the_same_home_is_refused_as_busy(device):
    second = device.cli("up", "--listen", "127.0.0.1:0", check=False)
    assert second.returncode == 6
    assert str(device.process.pid) in second.stderr


def agent_uid(device):
    """Return the uid of the process that answers the control socket: not the one root runs to start others."""
    children = Path(f"/proc/{device.process.pid}/task/{device.process.pid}/children").read_text().split()
    lines = [(pid, Path(f"/proc/{pid}/status").read_text()) for pid in children]
    forked = [text for pid, text in lines if "casemate.device" not in Path(f"/proc/{pid}/cmdline").read_text()]
    agents = [int(text.split("Uid:")[1].split()[0]) for text in forked if "bwrap" not in text.split()[1]]
    assert len(agents) == 1
    return agents[0]


@pytest.mark.root
def test_as_root_every_process_has_a_uid_of_its_own(device):
    uids = {"agent": agent_uid(device)}
    for role in ("vault", "gateway", "journal", "engine"):
        status = Path(f"/proc/{device.pid_of(role)}/status").read_text()
        uids[role] = int(status.split("Uid:")[1].split()[0])
    assert 0 not in uids.values()
    assert len(set(uids.values())) == len(uids)


@pytest.mark.parametrize("role", ["engine", "gateway", "vault", "journal"])
def test_kill_9_of_any_child_is_repaired(device, role):
    before = device.kill(role)
    assert eventually(lambda: device.refresh()["ready"] and device.pid_of(role) not in {0, before}, 60)
    said = [line for line in device.log.read_text().splitlines() if line.endswith("is started again")]
    assert any(line.startswith(f"the {role}") for line in said), said
    assert "Japanese" in ask(device).choices[0].message.content
    assert device.json("journal", "verify")["ok"] is True


def test_a_dead_engine_answers_503_with_retry_after_until_it_is_back(device):
    device.kill("engine", signal.SIGSEGV)
    seen = []

    def recovered():
        try:
            ask(device)
        except openai.APIStatusError as error:
            seen.append((error.status_code, error.response.headers.get("retry-after")))
            return False
        except openai.APIConnectionError:
            seen.append(("cut", None))
            return False
        return True

    assert eventually(recovered, 60)
    assert all(status == 503 and after for status, after in seen if status != "cut")


def test_a_hung_engine_is_found_and_replaced(device):
    before = device.kill("engine", signal.SIGSTOP)
    assert eventually(lambda: device.refresh()["ready"] and device.pid_of("engine") not in {0, before}, 90)


def test_sigterm_stops_everything_within_the_contract(tmp_path):
    tmp_path.chmod(0o755)
    with running(tmp_path / "home") as device:
        below = descendants(device.process.pid)
        assert len(below) >= 5
        began = time.monotonic()
        assert device.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < CONTRACT * SLACK
        assert eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in below), 5)


@pytest.mark.parametrize("role", ["journal", "vault", "gateway", "engine"])
def test_sigterm_stops_a_device_that_is_starting_wherever_it_is(tmp_path, role):
    """Nobody hears what a process says that was asked for just then; nothing may wait for it."""
    tmp_path.chmod(0o755)
    with running(tmp_path / "home", ready=False) as device:
        below = device.process.pid
        assert eventually(lambda: any(f"casemate.device.{role}" in words_of(pid) for pid in descendants(below)), 60)
        began = time.monotonic()
        device.stop(signal.SIGTERM)
        assert time.monotonic() - began < CONTRACT * SLACK


def words_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_kill_9_of_the_agent_stops_everything_and_the_next_up_recovers(tmp_path):
    tmp_path.chmod(0o755)
    with running(tmp_path / "home") as device:
        below = descendants(device.process.pid)
        device.process.kill()
        device.process.wait()
        assert eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in below), CONTRACT * SLACK)
    with running(tmp_path / "home") as device:
        assert "Japanese" in ask(device).choices[0].message.content
        assert device.json("journal", "verify")["ok"] is True
