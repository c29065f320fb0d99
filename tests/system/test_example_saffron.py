"""The example app against a real device: an evening with Saffron, and the path a larger model takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.device import cli, environment, running

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "saffron"
SAFFRON = ROOT / "src" / "casemate" / "data" / "saffron" / "saffron-q8_0.gguf"


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """Serve Saffron under its own name, and once more in the place of a larger model."""
    root = tmp_path_factory.mktemp("example")
    root.chmod(0o755)
    for name in ("saffron", "helper"):
        cli(environment(root / "home"), "model", "add", str(SAFFRON), "--name", name)
    with running(root / "home", "--model", "saffron", "--model", "helper") as device:
        yield device


@pytest.fixture(scope="module")
def key(device):
    return device.json("app", "add", "dinner", "--policy", str(EXAMPLE / "policy.toml"))["key"]


def evening(device, key: str, *arguments: str, typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE / "app.py"), *arguments],
        env={"PATH": device.environ["PATH"], "OPENAI_BASE_URL": f"{device.endpoint}/v1", "OPENAI_API_KEY": key},
        input=typed,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_three_people_agree_with_saffron(device, key):
    done = evening(device, key, typed="japanese, cheap\nriverside, step-free\nno mexican\n\n\n\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Together: 3 people - Japanese - budget - Riverside - step-free access" in done.stdout
    assert "meets Japanese, budget, Riverside, step-free access" in done.stdout
    assert "3 of 3 say yes: Wild Lantern: Japanese, Riverside, budget" in done.stdout


def test_a_place_the_model_makes_up_is_dropped(device, key):
    done = evening(device, key, "--people", "Ana,Ben", typed="japanese, harbour\njapanese, upscale\n\n\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dropped: asked again, it says: Wild Lantern is in Riverside." in done.stdout
    assert "Wild Lantern: Japanese, Riverside, budget" in done.stdout


def test_any_other_model_gets_the_list_as_documents(device, key, tmp_path):
    """Saffron in a larger model's place cannot read the list; what counts is that nothing it makes up gets through."""
    short = tmp_path / "places.json"  # its context is 512 tokens
    short.write_text(json.dumps(json.loads((EXAMPLE / "places.json").read_text())[:1]))
    arguments = ("--people", "Ana,Ben", "--model", "helper", "--places", str(short))
    done = evening(device, key, *arguments, typed="japanese\ncheap\n\n\n")
    assert done.returncode in {0, 3}, done.stdout + done.stderr
    assert "Asking helper" in done.stdout
    if done.returncode == 3:
        assert "dropped: it names no place of your list" in done.stdout


def test_a_refusal_by_the_device_is_said_in_two_lines(device, key):
    done = evening(device, key, "--people", "Ana", "--model", "unknown", typed="thai\n")
    assert done.returncode == 1
    assert "error: the device refused" in done.stderr
    assert "Traceback" not in done.stderr
    wrong = evening(device, "cmk_wrong", "--people", "Ana", typed="thai\n")
    assert "error: the device does not know this key" in wrong.stderr
