"""A thief takes the backup instead of the device, and restores it on a machine of their own.

The controls: the recovery code opens the same backup, and the search that finds no weights finds a plain copy.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from support.device import cli, environment

SAFFRON = Path(__file__).resolve().parents[2] / "src" / "casemate" / "data" / "saffron" / "saffron-q8_0.gguf"


@pytest.fixture(scope="module")
def stolen(tmp_path_factory):
    """Return (folder, the owner's recovery code, the key of an app); `backup.tar` lies in the folder."""
    root = tmp_path_factory.mktemp("backup")
    root.chmod(0o755)
    environ = environment(root / "home")
    cli(environ, "model", "add", str(SAFFRON), "--name", "saffron")
    code = json.loads(cli(environ, "keystore", "add-recovery", "--json").stdout)["recovery"]
    key = json.loads(cli(environ, "app", "add", "kitchen", "--json").stdout)["key"]
    cli(environ, "backup", str(root / "backup.tar"))
    return root, code, key


@pytest.fixture
def thief(stolen, tmp_path):
    """Return the environment of another machine on which the backup was restored."""
    environ = environment(tmp_path / "restored")
    cli(environ, "restore", str(stolen[0] / "backup.tar"), "--yes")
    return environ


def pieces(data: bytes, size: int = 48, count: int = 200) -> list[bytes]:
    step = len(data) // count
    return [data[at : at + size] for at in range(0, len(data) - size, step)]


def held(data: bytes) -> int:
    """Return how many samples of the weights lie in *data*."""
    return sum(piece in data for piece in pieces(SAFFRON.read_bytes()))


def test_no_piece_of_the_weights_and_no_app_key_is_in_the_file(stolen):
    root, code, key = stolen
    data = (root / "backup.tar").read_bytes()
    assert held(data) == 0
    for secret in (key, key.rpartition("_")[2], code, code.replace("-", "")):
        assert secret.encode() not in data


def test_control_the_search_finds_a_plain_copy(stolen, tmp_path):
    shutil.copy(SAFFRON, tmp_path / "plain")
    assert held((tmp_path / "plain").read_bytes()) > 150


def test_a_restored_backup_opens_nothing(thief):
    done = cli(thief, "model", "verify", "saffron", check=False)
    assert done.returncode == 4
    assert "only the recovery code opens it" in done.stderr
    assert cli(thief, "up", "--listen", "127.0.0.1:0", check=False).returncode == 4


def test_the_devices_own_key_file_is_not_in_it_and_does_not_open_it(stolen, thief):
    """The slot of the key file stays behind: even with the device's key file the backup is closed."""
    thief = {**thief, "CASEMATE_KEYFILE": str(stolen[0] / "keys" / "device.key")}
    assert cli(thief, "model", "verify", "saffron", check=False).returncode == 4


@pytest.mark.parametrize(
    "guess", ["", "A" * 56, "2KY7-YCMW-WHID-RZVK-QZH3-RZII-KOYL-BVUK-TCEP-WXZW-4ITG-7RT4-6V2T-KZL5"]
)
def test_a_guessed_recovery_code_does_not_open_it(thief, tmp_path, guess):
    (tmp_path / "guess").write_text(guess)
    done = cli(thief, "keystore", "rotate", "--to", "keyfile", "--recovery-file", str(tmp_path / "guess"), check=False)
    assert done.returncode == 4
    assert cli(thief, "model", "verify", "saffron", check=False).returncode == 4


def test_control_the_owners_recovery_code_opens_it(stolen, thief, tmp_path):
    (tmp_path / "code").write_text(stolen[1])
    cli(thief, "keystore", "rotate", "--to", "keyfile", "--recovery-file", str(tmp_path / "code"))
    assert json.loads(cli(thief, "model", "verify", "saffron", "--json").stdout)["ok"] is True
