"""The journal of a real device: who said what, through deaths and a stop; an altered log stops it until archived."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

from support.device import cli, environment, running


def wrong_key(device):
    request = urllib.request.Request(
        f"{device.endpoint}/v1/models", headers={"Authorization": "Bearer wrong-key-material"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10):
            raise AssertionError("a wrong key was accepted")
    except urllib.error.HTTPError as error:
        assert error.code == 401
        error.close()


def eventually(condition, within=30.0):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def speakers(rows, kind):
    found = [row["event"]["metadata"] for row in rows if row["event"]["metadata"]["event_code"] == kind]
    return {metadata["log_provider"] for metadata in found}


def test_a_devices_life_is_in_its_journal_and_an_altered_journal_stops_it(tmp_path):
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    with running(home) as device:
        wrong_key(device)
        rows = eventually(lambda: device.events("auth_refused") and device.events())
        assert speakers(rows, "model_loaded") == {"vault"}
        assert speakers(rows, "auth_refused") == {"gateway"}
        assert speakers(rows, "device_started") == {"agent"}
        assert "wrong-key-material" not in json.dumps(rows)
        device.cli("app", "add", "kitchen")
        assert "agent" in speakers(device.events(), "app_added")
        assert device.cli("journal", "archive", "--yes", check=False).returncode == 6

        device.kill("journal")
        eventually(lambda: device.events("process_restarted"))
        device.cli("app", "add", "garden")
        eventually(lambda: "gateway" in speakers(device.events("garden"), "config_changed"))  # it got a new link
        assert device.stop() == 0
    found = json.loads(cli(device.environ, "journal", "verify", "--json").stdout)
    assert (found["ok"], found["pending"]) == (True, 0)
    assert device.events()[-1]["event"]["message"] == "device stopped: signal"

    bundle = home / "journal" / "tile" / "entries" / "000.p" / str(found["size"])
    data = bundle.read_bytes()
    bundle.write_bytes(data[:-1] + (b"\x01" if data[-1:] != b"\x01" else b"\x02"))
    environ = environment(home)
    refused = cli(environ, "up", "--listen", "127.0.0.1:0", check=False)
    assert refused.returncode == 10
    assert "tile/entries/000.p" in refused.stderr
    assert "casemate journal archive" in refused.stderr
    archived = json.loads(cli(environ, "journal", "archive", "--yes", "--json").stdout)
    assert (archived["reason"], archived["size"]) == ("entries", found["size"])
    with running(home) as device:
        assert device.events("journal_archived")
        assert device.json("journal", "verify")["origin"].endswith("/2")
