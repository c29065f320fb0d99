"""`casemate release` as scripts meet it: from a model to a repository, with the evals run on a real device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from support.device import cli

MODEL = Path(__file__).resolve().parents[2] / "src/casemate/data/saffron/saffron-q8_0.gguf"
SPEC = """
kind = "model"
name = "saffron"
version = "1.0"
security_version = 1
licence = "Apache-2.0"
files = ["saffron.gguf"]
smoke = [{ prompt = "Hello", expect = "EXPECT" }]
"""


@pytest.fixture
def desk(tmp_path):
    """A release host's working directory, and its environment."""
    shutil.copy(MODEL, tmp_path / "saffron.gguf")
    (tmp_path / "SPEC.toml").write_text(SPEC.replace("EXPECT", "[a-z]"))
    (tmp_path / "BAD.toml").write_text(SPEC.replace("EXPECT", "xyzzy plugh"))
    (tmp_path / "passphrase").write_text("correct horse battery\n")
    environ = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "CASEMATE_RELEASE_PASSPHRASE_FILE": str(tmp_path / "passphrase"),
        "CASEMATE_RELEASE_REPO": str(tmp_path / "repository"),
    }

    def run(*arguments, check=True):
        done = cli(environ, "release", *map(str, arguments), "--json", check=check)
        return json.loads(done.stdout) | {"exit": done.returncode}

    run.path = tmp_path
    run.environ = environ
    return run


def test_a_model_becomes_a_release_that_a_device_could_follow(desk):
    repository, bundle = desk.path / "repository", desk.path / "saffron.release"
    made = desk("init", repository)
    assert Path(made["root"]).exists()
    built = desk("build", desk.path / "SPEC.toml", "--out", bundle)
    assert built["gates"] == ["formats", "gguf", "licence", "evals", "ml-bom"]
    again = desk("build", desk.path / "SPEC.toml", "--out", desk.path / "again.release")
    assert again["sha256"] == built["sha256"]
    (published,) = desk("publish", repository, "--add", bundle)["releases"]
    label = "model/saffron/1.0"
    assert desk("promote", label, "--channel", "stable")["generation"] == 1
    recipient = "x25519:" + "hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo"
    (grant,) = desk("grant", label, "--to", recipient)["grants"]
    assert grant.startswith(f"grants/{published['release']}/")
    found = desk("verify", repository, "--deep")
    assert (found["ok"], found["releases"], found["signatures"]) == (True, [label], 1)
    assert desk("export", repository, desk.path / "all.tar")["bytes"] > published["full_bytes"]
    assert desk("key", "rotate", "timestamp-1")["new"] == "timestamp-2"
    assert desk("refresh", repository)["days_left"]["targets"] >= 88
    assert desk("yank", label, "--yes")["stopped"] == ["stable"]
    assert desk("verify", repository)["releases"] == []


def test_a_model_that_fails_its_smoke_prompt_is_not_built(desk):
    reply = desk("build", desk.path / "BAD.toml", "--out", desk.path / "x", check=False)
    assert (reply["exit"], reply["error"]["code"]) == (11, "policy_denied")
    assert "smoke prompt 'Hello'" in reply["error"]["message"]
    assert not (desk.path / "x").exists()


def test_a_policy_is_asked_over_the_demo_model(desk):
    (desk.path / "kitchen.toml").write_text('schema = 1\nsystem_prompt = "You help the kitchen."\n')
    text = SPEC.replace('"model"', '"policy"').replace("saffron.gguf", "kitchen.toml").replace("EXPECT", "[a-z]")
    (desk.path / "POLICY.toml").write_text(text)
    built = desk("build", desk.path / "POLICY.toml", "--out", desk.path / "kitchen.release")
    assert built["gates"] == ["formats", "licence", "evals", "ml-bom"]


def test_refusals_have_their_codes(desk):
    repository = desk.path / "repository"
    assert desk("verify", repository, check=False)["exit"] == 5
    (desk.path / "pickle.toml").write_text(SPEC.replace("saffron.gguf", "p.gguf"))
    (desk.path / "p.gguf").write_bytes(b"\x80\x04\x8c\x05posix.")
    assert desk("build", desk.path / "pickle.toml", "--out", desk.path / "x", check=False)["exit"] == 10
    (desk.path / "typo.toml").write_text(SPEC.replace("version =", "verison =", 1))
    assert desk("build", desk.path / "typo.toml", "--out", desk.path / "x", check=False)["exit"] == 2
