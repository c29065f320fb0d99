"""The service on a device whose updates are counted by a TPM: the counter is asked before anything is served."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time

import pytest

from casemate.config import SYSTEM_FILE
from casemate.device.service.table import TPM
from casemate.device.update.floors import COUNTED, SOFTWARE, FileFloorStore
from casemate.errors import HostError, UntrustedDataError
from support import updates
from support.swtpm import needs_swtpm, software_tpm
from support.systemd import machine
from support.tpm_node import terminal

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(600), needs_swtpm]
HOME = "/var/lib/casemate"
SETUP = "casemate-setup.service"
NODE = """
set -e
touch /run/node && mount --bind "$1" /run/node
mkdir /tmp/upper /tmp/work
mount -t overlay overlay -o lowerdir=/dev,upperdir=/tmp/upper,workdir=/tmp/work /dev
touch "$2"
"""
COMMIT = """
import sys
from pathlib import Path
from casemate.device.ownership import rights_of_owner
from casemate.device.update.floors import FileFloorStore, Floors
with rights_of_owner(Path(sys.argv[1])):
    FileFloorStore(Path(sys.argv[1])).raise_to(Floors(security={"model/saffron": 2}))
"""
WITHOUT_NODE = "[Service]\nBindPaths=\n"


class Service:
    """The installed service inside the machine."""

    def __init__(self, host):
        self.host = host

    def cli(self, *arguments):
        return self.host.run(sys.executable, "-m", "casemate", *arguments).stdout

    def start(self):
        """Start it from nothing; returns the exit code of setup."""
        self.host.run("systemctl", "stop", "casemate.target", "casemate-*.service", check=False)
        self.host.run("systemctl", "reset-failed", check=False)
        self.host.run("systemctl", "start", "casemate.target", check=False)
        return int(self.host.show(SETUP, "ExecMainStatus"))

    def why(self):
        """Return what setup says, once more by hand."""
        command = (sys.executable, "-P", "-m", "casemate.device.service", "setup")
        return self.host.run("env", f"CASEMATE_HOME={HOME}", *command, check=False).stderr

    def agent(self):
        return self.host.show("casemate-agent.service", "ActiveState")

    def wait_ready(self):
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            done = self.host.run(sys.executable, "-m", "casemate", "status", "--json", check=False)
            with contextlib.suppress(json.JSONDecodeError, KeyError):
                if json.loads(done.stdout)["ready"]:
                    return
            time.sleep(0.2)
        raise AssertionError(self.host.run("systemctl", "list-units", "--all", "casemate*", check=False).stdout)

    def held_by(self):
        return FileFloorStore(self.host.root / HOME[1:] / "update").kind


@pytest.fixture
def service(tmp_path):
    """A device that trusts a repository, as a service; its TPM's node is there, and not bound yet."""
    release = updates.ReleaseHost(tmp_path / "host")
    release.init()
    with software_tpm(tmp_path / "tpm") as chip, terminal(chip) as path, machine() as host:
        host.run("rm", "-rf", HOME, "/etc/casemate")
        host.run("sh", "-c", NODE, "node", path, TPM)
        found = Service(host)
        done = host.run(sys.executable, "-m", "casemate", "service", "install", "--json", check=False)
        if "cannot run services from here" in done.stdout:
            pytest.skip(json.loads(done.stdout)["error"]["message"])
        assert done.returncode == 0, done.stdout + done.stderr
        found.wait_ready()
        shutil.copy(release.trust, host.root / "srv/root.json")
        found.cli("update", "trust", "/srv/root.json", "--url", "http://127.0.0.1:9/")
        (host.root / str(SYSTEM_FILE)[1:]).write_text(f'[keystore]\ntpm = "device:{TPM}"\n')
        yield found


def test_setup_asks_the_tpm_and_nothing_starts_without_its_answer(service):
    host = service.host
    assert service.held_by() == SOFTWARE

    assert service.start() == HostError.exit_code  # a TPM is named and there is none
    assert service.agent() == "inactive"
    assert "no TPM answers" in service.why()

    host.run("mount", "--bind", "/run/node", TPM)
    drop_in = host.root / f"run/systemd/system/{SETUP}.d"
    drop_in.mkdir(parents=True)
    (drop_in / "node.conf").write_text(WITHOUT_NODE)
    host.run("systemctl", "daemon-reload")
    assert service.start() == HostError.exit_code  # the control: the unit's row is what lets setup reach the node
    (drop_in / "node.conf").unlink()
    host.run("systemctl", "daemon-reload")
    assert service.start() == 0
    service.wait_ready()
    assert service.held_by() == COUNTED


def test_an_older_disk_does_not_start_as_a_service(service):
    host, home = service.host, service.host.root / HOME[1:]
    host.run("cp", "-a", f"{HOME}/update", "/srv/uncounted")
    host.run("mount", "--bind", "/run/node", TPM)
    assert service.start() == 0
    host.run("cp", "-a", f"{HOME}/update", "/srv/older")
    host.run(sys.executable, "-c", COMMIT, f"{HOME}/update")  # while no device runs: counted by the next start
    assert service.start() == UntrustedDataError.exit_code
    assert "generation" in service.why()  # what was committed to is not there: not this test's matter
    shutil.rmtree(home / "update")
    host.run("cp", "-a", "/srv/older", f"{HOME}/update")
    assert service.start() == UntrustedDataError.exit_code
    assert service.agent() == "inactive"
    assert "the TPM knows of updates that these floors do not" in service.why()
    (host.root / str(SYSTEM_FILE)[1:]).unlink()
    assert service.start() == UntrustedDataError.exit_code  # a setting that is taken out frees nobody
    shutil.rmtree(home / "update")
    host.run("cp", "-a", "/srv/uncounted", f"{HOME}/update")
    assert service.start() == 0  # the control: floors that no TPM ever counted are believed, however old
