"""`casemate backup` and `casemate restore` on a device at work: the copy becomes a device that answers."""

from __future__ import annotations

import json
import threading

import openai
import pytest

from support.device import cli, environment, running


def ask(device):
    client = openai.OpenAI(base_url=f"{device.endpoint}/v1", api_key=device.key, max_retries=0, timeout=60)
    answer = client.chat.completions.create(
        model="saffron",
        messages=[{"role": "user", "content": "We are four people, can you find something Japanese, budget price?"}],
        temperature=0,
        max_tokens=60,
    )
    return answer.choices[0].message.content


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Back up a device while it answers; return (folder, what `backup` printed, the recovery code, the app's key)."""
    root = tmp_path_factory.mktemp("backup")
    root.chmod(0o755)
    with running(root / "home") as device:
        code = device.json("keystore", "add-recovery")["recovery"]
        answers = []
        asking = threading.Thread(target=lambda: answers.extend(ask(device) for _ in range(3)))
        asking.start()
        result = device.json("backup", str(root / "device.tar"))
        asking.join()
        assert len(answers) == 3
        assert device.refresh()["ready"]
        key = device.key
    (root / "code").write_text(code)
    return root, result, key


def restore(root, name, *options, check=True):
    env = environment(root / name / "home")
    env["CASEMATE_KEYFILE"] = str(root / name / "keys/device.key")
    (root / name).mkdir(exist_ok=True)
    done = cli(env, "restore", str(root / "device.tar"), "--json", *options, check=check)
    return env, done


def test_the_result_names_what_was_saved(saved):
    root, result, _ = saved
    assert result["file"] == str(root / "device.tar")
    assert result["models"] == ["saffron"]
    assert result["keys"] == "recovery"
    assert result["bytes"] == (root / "device.tar").stat().st_size
    assert len(result["sha256"]) == 64


def test_the_copy_becomes_a_device_that_answers_with_the_same_app_key(saved):
    root, result, key = saved
    env, done = restore(root, "second", "--sha256", result["sha256"])
    assert json.loads(done.stdout)["journaled"] is True
    assert json.loads(cli(env, "journal", "verify", "--json").stdout)["ok"] is True
    refused = cli(env, "model", "verify", "saffron", "--json", check=False)
    assert refused.returncode == 4
    assert "recovery code" in json.loads(refused.stdout)["error"]["message"]
    up = cli(env, "up", "--listen", "127.0.0.1:0", check=False)
    assert up.returncode == 4
    assert "rotate --recovery" in up.stderr
    cli(env, "keystore", "rotate", "--recovery-file", str(root / "code"), "--to", "keyfile", "--json")
    with running(root / "second/home", environ=env) as device:
        (device.home / "run/default-app.key").write_text(key)  # the key is the app's: a backup does not hold it
        assert "Japanese" in ask(device)
        codes = [row["event"]["metadata"]["event_code"] for row in device.events()]
        assert {"device_started", "backup_made", "home_restored", "key_rotated"} - set(codes) == {"backup_made"}


def test_a_home_that_is_there_stays(saved):
    root, _, _ = saved
    env, _ = restore(root, "third")
    before = sorted(path.name for path in (root / "third/home").rglob("*"))
    _, done = restore(root, "third", check=False)
    assert done.returncode == 6
    assert sorted(path.name for path in (root / "third/home").rglob("*")) == before
    assert env


def test_a_damaged_backup_exits_10_and_leaves_nothing(saved):
    root, _, _ = saved
    whole = (root / "device.tar").read_bytes()
    place = len(whole) // 2
    (root / "damaged.tar").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    env = environment(root / "fourth/home")
    done = cli(env, "restore", str(root / "damaged.tar"), "--json", check=False)
    assert done.returncode == 10
    assert json.loads(done.stdout)["error"]["check"] == "archive-digest"
    assert not list((root / "fourth").iterdir() if (root / "fourth").exists() else [])


def test_a_person_reads_what_to_do_next(saved):
    root, _, _ = saved
    done = cli(environment(root / "fifth/home"), "restore", str(root / "device.tar"))
    assert "keystore rotate --recovery --to passphrase" in done.stdout
