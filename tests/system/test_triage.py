"""An engine that dies again and again is left down for a person to look at; everything else goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import openai
import pytest

from casemate.device.supervisor import LIMIT
from support.device import deepest_child, running

SAFFRON = Path(__file__).parents[2] / "src/casemate/data/saffron/saffron-q8_0.gguf"
WITHIN = 120.0


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A device with two engines, one of which has died as often as it may."""
    root = tmp_path_factory.mktemp("triage")
    root.chmod(0o755)
    for name in ("frail", "sound"):
        (root / f"{name}.gguf").symlink_to(SAFFRON)
    with running(root / "home", "--model", str(root / "frail.gguf"), "--model", str(root / "sound.gguf")) as device:
        kill_until_it_stays_down(device, "frail")
        yield device


def model(device, name):
    return next(row for row in device.refresh()["models"] if row["name"] == name)


def kill_until_it_stays_down(device, name):
    deadline = time.monotonic() + WITHIN
    while (row := model(device, name))["state"] != "needs triage":
        assert time.monotonic() < deadline, row
        if row["state"] == "ready" and (pid := deepest_child(row["pid"])):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def ask(device, name):
    client = openai.OpenAI(base_url=f"{device.endpoint}/v1", api_key=device.key, max_retries=0, timeout=30)
    return client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "Japanese, budget price?"}], max_tokens=4
    )


def test_it_stays_down_and_status_says_why(device):
    first = model(device, "frail")
    time.sleep(1.0)
    row = model(device, "frail")
    assert row == first
    assert (row["failures"], row["pid"]) == (LIMIT + 1, None)
    assert "SIGKILL" in row["reason"]
    assert device.status["ready"] is False
    told = device.cli("status", check=False)
    assert told.returncode == 1
    assert "needs triage" in told.stdout


def test_its_model_is_503_and_says_that_a_person_must_look(device):
    with pytest.raises(openai.InternalServerError) as refused:
        ask(device, "frail")
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["retry-after"]) >= 60
    assert "until somebody looks" in refused.value.message


def test_the_other_model_still_answers(device):
    assert model(device, "sound")["state"] == "ready"
    assert ask(device, "sound").choices[0].message.content


def test_the_journal_says_it_once(device):
    assert len(device.events("engine_needs_triage")) == 1


def test_a_new_gateway_says_the_same(device):
    before = device.kill("gateway")
    deadline = time.monotonic() + WITHIN
    while device.pid_of("gateway") in {0, before} or model(device, "sound")["state"] != "ready":
        assert time.monotonic() < deadline, device.status
        time.sleep(0.1)
    test_its_model_is_503_and_says_that_a_person_must_look(device)
