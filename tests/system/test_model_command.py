"""`casemate model` and `casemate keystore` as a script meets them: fields, exit codes, and what a kill leaves."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from support import gguf_files
from support.device import cli, environment


@pytest.fixture
def shop(tmp_path):
    """An empty place for a home, and the command line in it."""
    (tmp_path / "tiny.gguf").write_bytes(gguf_files.tiny())
    env = environment(tmp_path / "home")

    class Shop:
        path = tmp_path
        home = tmp_path / "home"
        environ = env

        def run(self, *arguments, code=0, **extra):
            done = cli({**env, **extra}, *arguments, check=False)
            assert done.returncode == code, done.stdout + done.stderr
            return done

        def json(self, *arguments, code=0, **extra):
            result = json.loads(self.run(*arguments, "--json", code=code, **extra).stdout)
            assert result.pop("schema") == 1
            return result

        def models(self):
            return sorted(path.name for path in (self.home / "models").iterdir())

    return Shop()


def test_the_contract_for_scripts(shop):
    added = shop.json("model", "add", str(shop.path / "tiny.gguf"), "--name", "tiny", "--license", "MIT")
    assert {"name", "digest", "bytes"} <= set(added)
    assert added["bytes"] == len(gguf_files.tiny())
    (row,) = shop.json("model", "list")["models"]
    assert row == {
        "name": "tiny",
        "digest": added["digest"],
        "bytes": added["bytes"],
        "format": "gguf",
        "licence": "MIT",
        "path": str(shop.home / "models" / "tiny.cmodel"),
    }
    assert shop.json("model", "verify", "tiny") == {"ok": True, "failed": ""}
    assert shop.json("model", "show", "tiny")["facts"]["architecture"] == "llama"
    assert shop.json("model", "add", str(shop.path / "tiny.gguf"), "--name", "tiny", code=6)["error"]["code"] == "busy"
    assert shop.json("model", "verify", "nope", code=5)["error"]["code"] == "not_found"
    assert shop.json("model", "rm", "tiny", "--yes") == {"name": "tiny", "removed": True}
    assert shop.models() == []


def test_a_changed_container_is_exit_10_and_names_the_check(shop):
    shop.run("model", "add", str(shop.path / "tiny.gguf"))
    path = shop.home / "models" / "tiny.cmodel"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert shop.json("model", "verify", "tiny", code=10) == {"ok": False, "failed": "container-chunk"}
    events = shop.run("journal", "show").stdout
    assert "refused by container-chunk" in events
    path.write_bytes(b"PK\x03\x04" + data[4:])
    assert shop.json("model", "verify", "tiny", code=10)["failed"] == "container-magic"
    (row,) = shop.json("model", "list")["models"]
    assert row["problem"] == "container-magic"
    shop.run("model", "rm", "tiny", "--yes")


@pytest.mark.parametrize("kind", ["pickle", "zip archive", "unknown"])
def test_another_format_is_exit_10_and_named(shop, kind):
    (shop.path / "x.gguf").write_bytes(gguf_files.OTHER_FORMATS[kind])
    error = shop.json("model", "add", str(shop.path / "x.gguf"), code=10)["error"]
    assert error["check"] == "format"
    assert kind in error["message"]
    assert shop.models() == []


def test_an_export_travels_to_another_home(shop, tmp_path):
    shop.run("model", "add", str(shop.path / "tiny.gguf"))
    other = environment(tmp_path / "second" / "home")
    secret = shop.path / "secret"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    shop.json("model", "export", "tiny", "--to", str(shop.path / "out.cmodel"), "--passphrase-file", str(secret))
    (tmp_path / "second").mkdir(mode=0o755)
    done = cli(other, "model", "add", str(shop.path / "out.cmodel"), "--name", "got", check=False)
    assert done.returncode == 4
    cli(other, "model", "add", str(shop.path / "out.cmodel"), "--name", "got", "--passphrase-file", str(secret))
    assert json.loads(cli(other, "model", "verify", "got", "--json").stdout)["ok"]
    owner = json.loads(cli(other, "keystore", "status", "--json").stdout)["owner_key"]
    shop.json("model", "export", "tiny", "--to", str(shop.path / "key.cmodel"), "--recipient", owner)
    cli(other, "model", "add", str(shop.path / "key.cmodel"), "--name", "by-key")
    shop.run("model", "export", "tiny", "--to", str(shop.path / "x"), code=2)


def test_a_lost_passphrase_is_not_a_lost_model(shop):
    secret, new = shop.path / "old", shop.path / "new"
    for path, text in ((secret, "correct horse battery"), (new, "staple after staple")):
        path.write_text(text)
        path.chmod(0o600)
    first, second = {"CASEMATE_PASSPHRASE_FILE": str(secret)}, {"CASEMATE_PASSPHRASE_FILE": str(new)}
    shop.run("model", "add", str(shop.path / "tiny.gguf"), **first)
    code = shop.json("keystore", "add-recovery", **first)["recovery"]
    assert shop.json("model", "verify", "tiny", code=4)["error"]["code"] == "not_authorised"
    assert shop.json("model", "verify", "tiny", code=4, **second)["error"]["code"] == "not_authorised"
    (shop.path / "code").write_text(code.lower())
    arguments = ("--recovery-file", str(shop.path / "code"), "--new-passphrase-file", str(new))
    done = shop.json("keystore", "rotate", *arguments, **second)
    assert (done["kind"], done["rewrapped"]) == ("passphrase", 1)
    assert done["recovery"] != code
    assert shop.json("model", "verify", "tiny", **second)["ok"]
    shop.run("model", "verify", "tiny", code=4, **first)
    status = shop.json("keystore", "status", **second)
    assert status["recovery"]
    assert status["assurance_by"] == "local"


def test_a_killed_add_leaves_nothing_behind(shop):
    path = shop.path / "big.gguf"
    head = gguf_files.assemble(gguf_files.KEYS, [gguf_files.tensor("w", (1 << 28,), 0, 0)], b"")
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + (4 << 28))
    shop.run("model", "list", code=5)
    command = [sys.executable, "-m", "casemate", "model", "add", str(path)]
    process = subprocess.Popen(command, env=shop.environ, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and not written(process.pid, shop.home / "models") and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert shop.models() == []
    shop.run("model", "add", str(shop.path / "tiny.gguf"))
    assert shop.models() == ["tiny.cmodel"]


def written(pid, directory):
    """Whether the process holds a file without a name in *directory* that already has content."""
    for entry in list(os.scandir(f"/proc/{pid}/fd")):
        try:
            if str(directory) in os.readlink(entry.path) and os.stat(entry.path).st_size > 1 << 20:
                return True
        except OSError:
            continue
    return False


def test_a_full_disk_is_exit_1_with_a_hint_and_leaves_nothing(shop):
    gguf_files.write_sized(shop.path / "big.gguf", 8 << 20)
    shop.run("model", "add", str(shop.path / "tiny.gguf"))
    limit = 4 << 20  # a file-size limit fails a write in the middle, as a full disk does
    done = subprocess.run(
        [sys.executable, "-m", "casemate", "model", "add", str(shop.path / "big.gguf"), "--json"],
        env=shop.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert "nothing was left" in error["hint"]
    assert shop.models() == ["tiny.cmodel"]


def test_rotation_refuses_while_a_device_holds_the_home(shop):
    shop.run("model", "add", str(shop.path / "tiny.gguf"))
    fd = os.open(shop.home / "run" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert shop.json("keystore", "rotate", code=6)["error"]["code"] == "busy"
    os.close(fd)
    assert shop.json("keystore", "rotate")["rewrapped"] == 1
