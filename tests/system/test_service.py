"""The device as units: under a real systemd, and each unit's command by hand where there is none."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from casemate.device import admin, attach
from casemate.device.home import Home, owner_of
from casemate.errors import CasemateError
from support import updates
from support.device import deepest_child
from support.systemd import machine

ROLES = ("journal", "vault", "gateway", "engine")
UNITS = {role: f"casemate-{role}{'@saffron' if role == 'engine' else ''}.service" for role in (*ROLES, "agent")}
HOME = "/var/lib/casemate"
CONTRACT, SLACK = 5.0, 5
ASK = """
import json, sys, urllib.request
key, url = open(sys.argv[1]).read().strip(), sys.argv[2] + "/v1/chat/completions"
body = {"model": "saffron", "temperature": 0, "max_tokens": 60, "messages": [{"role": "user", "content":
        "We are four people, can you find something Japanese, budget price?"}]}
headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
request = urllib.request.Request(url, json.dumps(body).encode(), headers)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""

pytestmark = pytest.mark.root


def eventually(condition, within=60.0):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


# --- under systemd ----------------------------------------------------------------------------------------------------


class Service:
    """The installed service inside the machine."""

    def __init__(self, host):
        self.host = host

    def cli(self, *arguments, check=True):
        return self.host.run(sys.executable, "-m", "casemate", *arguments, check=check)

    def status(self):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(self.cli("status", "--json", check=False).stdout)
        return {"ready": False}

    def wait_ready(self):
        if not eventually(lambda: self.status()["ready"]):
            states = self.host.run("systemctl", "list-units", "--all", "casemate*", "--no-legend", check=False).stdout
            raise AssertionError(f"not ready: {self.status()}\n{states}")

    def pid(self, role):
        return int(self.host.show(UNITS[role], "MainPID"))

    def process(self, role):
        """Return /proc of the process that does the job (an engine's parent only holds its leash), seen from here."""
        pid = self.pid(role)
        return self.host.root / "proc" / str(self.host.deepest(pid) if role == "engine" else pid)

    def ask(self):
        done = self.host.run(sys.executable, "-c", ASK, f"{HOME}/run/default-app.key", self.status()["endpoint"])
        return json.loads(done.stdout)["choices"][0]["message"]["content"]

    def events(self):
        rows = self.cli("journal", "show", "--json", "-n", "0").stdout.splitlines()
        return [json.loads(row) for row in rows]


@pytest.fixture(scope="module")
def service():
    with machine() as host:
        host.run("rm", "-rf", HOME, "/etc/casemate")
        service = Service(host)
        done = service.cli("service", "install", "--json", check=False)
        if "cannot run services from here" in done.stdout:
            pytest.skip(json.loads(done.stdout)["error"]["message"])
        assert done.returncode == 0, done.stdout + done.stderr
        service.wait_ready()
        yield service


def test_it_answers_and_says_why_its_keys_are_kept(service):
    assert "Japanese" in service.ask()
    status = service.status()
    assert status["assurance"] == "L1"
    assert "credential of the service manager" in status["assurance_reasons"][0]
    assert "shared-uid" not in [row["code"] for row in status["degraded"]]


def test_every_unit_runs_as_its_own_user_with_nothing_to_gain(service):
    users = set()
    for role in (*ROLES, "agent"):
        facts = dict(re.findall(r"^(\w+):\t(.*)$", (service.process(role) / "status").read_text(), re.MULTILINE))
        uids = set(facts["Uid"].split())
        assert len(uids) == 1
        users |= uids
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
        assert facts["NoNewPrivs"] == "1"
        assert facts["Seccomp"] == "2"
    assert len(users) == 5
    assert "0" not in users


def test_each_process_sees_its_part_of_the_home_and_no_other(service):
    seen = {}
    for role in ("journal", "vault", "gateway", "agent"):
        home = service.process(role) / "root" / HOME.lstrip("/")
        seen[role] = {part.name for part in home.iterdir()} - {"home.json", "run"}
    assert seen == {"journal": {"journal"}, "vault": {"keystore", "models"}, "gateway": {"apps"}, "agent": {"fleet"}}
    for role in ("journal", "gateway", "agent"):
        keys = service.process(role) / "root/etc/casemate/keys"
        assert list(keys.iterdir()) == []
    assert list((service.host.root / "etc/casemate/keys").iterdir())  # control: the key file is there, for root


def test_the_engine_has_namespaces_of_its_own_and_an_empty_host(service):
    engine, first = service.process("engine"), service.host.root / "proc/1"
    for kind in ("net", "pid", "mnt", "user", "ipc", "uts"):
        assert os.readlink(engine / "ns" / kind) != os.readlink(first / "ns" / kind)
    top = {entry.name for entry in (engine / "root").iterdir()}
    assert top <= {"dev", "etc", "lib", "lib64", "proc", "run", "sys", "tmp", "usr", "var", "root", "home"} | {
        Path(sys.prefix).parts[1],
        Path(__file__).parts[1],
    }
    assert {entry.name for entry in (engine / "root/etc").iterdir()} <= {"ld.so.cache"}
    assert not (engine / "root" / HOME.lstrip("/") / "models").exists()
    fds = [os.readlink(engine / "fd" / name) for name in os.listdir(engine / "fd")]
    own = r"/proc/\d+/status$"  # where it reads how much memory it holds
    assert all(re.match(rf"socket:|/dev/null|anon_inode|/memfd|{own}", fd) for fd in fds)
    assert sum(fd.startswith("/proc") for fd in fds) <= 1
    assert len([fd for fd in fds if fd.startswith("socket:")]) <= 4  # no leash among them


def test_a_process_of_another_user_cannot_join(service):
    join = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(20)\n"
        "from casemate.formats import ipc\n"
        f"s.connect('{HOME}/run/link/agent.sock'); s.sendall(ipc.encode(ipc.Join(role='vault')))\n"
        "print(s.recv(1))"
    )
    as_user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    try:
        said = service.host.run(*as_user, sys.executable, "-c", join).stdout
    except AssertionError as error:
        assert "ConnectionResetError" in str(error) or "BrokenPipeError" in str(error)
    else:
        assert said.strip() == "b''"
    assert service.status()["ready"]


@pytest.mark.parametrize("role", ["journal", "vault", "gateway", "engine", "agent"])
def test_kill_9_of_any_unit_is_repaired(service, role):
    service.wait_ready()
    before = service.pid(role)
    service.host.run("kill", "-KILL", str(before))
    assert eventually(lambda: service.pid(role) not in {0, before} and service.status()["ready"])
    assert "Japanese" in service.ask()
    assert json.loads(service.cli("journal", "verify", "--json").stdout)["ok"] is True


@pytest.mark.long
def test_a_hung_engine_is_pulled_by_its_leash(service):
    service.wait_ready()
    before = service.pid("engine")
    service.host.run("kill", "-STOP", str(service.host.deepest(before)))
    assert eventually(lambda: service.pid("engine") not in {0, before} and service.status()["ready"], 120)


def test_a_person_cannot_start_a_second_device_on_the_home(service):
    done = service.host.run("env", f"CASEMATE_HOME={HOME}", sys.executable, "-m", "casemate", "up", check=False)
    assert done.returncode == 6


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_update_unit_follows_a_repository_by_itself(service, tmp_path):
    """Everything by the units: fetched by the one with a network, made by the vault, switched in turn, judged."""
    service.wait_ready()
    release = updates.ReleaseHost(tmp_path / "host")
    release.init()
    release.publish(
        release.build("2.0", security=2, files={"saffron.gguf": updates.other(updates.MODEL.read_bytes(), 0)})
    )
    release.offer("model/saffron/2.0")
    recipient = json.loads(service.cli("device", "key", "show", "--json").stdout)["recipient"]
    release.grant(recipient, "model/saffron/2.0")
    shutil.copytree(release.public, service.host.root / "srv/releases")
    service.host.run("chmod", "-R", "a+rX", "/srv/releases")
    site = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/srv/releases", "8899"]
    service.host.run("systemd-run", "--unit=site", *site)
    assert eventually(lambda: listening(service.host, 8899))
    url = "http://127.0.0.1:8899/"
    service.cli("update", "trust", "/srv/releases/metadata/1.root.json", "--url", url)
    service.host.run("systemctl", "start", "casemate-update.service")
    state = json.loads(service.cli("update", "status", "--json").stdout)
    assert (state["state"], state["good"], state["last_error"]) == ("GOOD", 1, "")
    assert service.status()["models"][0]["container"] == "saffron.g1"
    assert "Japanese" in service.ask()
    said = [row["event"]["metadata"]["event_code"] for row in service.events()]
    assert [code for code in said if code.startswith("update_")][-3:] == [
        "update_staged",
        "update_trial",
        "update_good",
    ]
    service.host.run("systemctl", "restart", "casemate.target")
    service.wait_ready()
    assert service.status()["models"][0]["container"] == "saffron.g1"
    service.host.run("systemctl", "stop", "site")


def listening(host, port):
    return host.run("ss", "-ltnH", f"sport = :{port}", check=False).stdout.strip()


def test_stopping_is_quick_orderly_and_can_be_taken_back(service):
    service.wait_ready()
    began = time.monotonic()
    service.host.run("systemctl", "stop", "casemate.target", "casemate-*.service")
    assert time.monotonic() - began < CONTRACT * SLACK
    said = [row["event"]["metadata"]["event_code"] for row in service.events()]
    last = max(index for index, code in enumerate(said) if code == "engine_ready")
    assert "device_stopped" in said[last:]
    assert not {"engine_crashed", "process_restarted"} & set(said[last:])
    service.host.run("systemctl", "start", "casemate.target")
    service.wait_ready()
    service.host.run("systemctl", "start", "casemate.target")  # again: nothing to do, nothing broken
    assert service.status()["ready"]


def test_uninstall_takes_back_what_it_wrote_and_keeps_the_home(service):
    removed = json.loads(service.cli("service", "uninstall", "--json").stdout)
    assert removed["left"] == []
    etc = service.host.root / "etc"
    assert not list(etc.rglob("casemate*.service")) + list(etc.rglob("casemate.target"))
    assert (
        service.host.run("systemctl", "list-unit-files", "casemate*", "--no-legend", check=False).stdout.strip() == ""
    )
    assert (service.host.root / HOME.lstrip("/") / "models/saffron.cmodel").exists()
    again = json.loads(service.cli("service", "install", "--json").stdout)
    assert again["installed"] is True
    service.wait_ready()
    service.cli("service", "uninstall", "--purge", "--yes")
    assert not (service.host.root / HOME.lstrip("/")).exists()
    assert not list((service.host.root / "etc/casemate/keys").glob("*"))


def test_a_passphrase_reaches_the_vault_as_an_encrypted_credential(service):
    """Runs last: it installs anew, with a passphrase that lies in the unit, sealed to this machine."""
    host, secret = service.host, "correct horse battery staple"
    if not shutil.which("systemd-creds"):
        pytest.skip("systemd-creds is not installed")
    sealed = host.run(
        "systemd-creds", "encrypt", "--with-key=host", "--name=casemate-passphrase", "-p", "-", "-", stdin=secret
    ).stdout
    assert secret not in sealed
    for unit in ("casemate-setup", "casemate-vault"):
        folder = host.root / f"etc/systemd/system/{unit}.service.d"
        folder.mkdir(parents=True)
        (folder / "passphrase.conf").write_text(f"[Service]\n{sealed}")
    (host.root / "run/passphrase").write_text(secret)
    host.run("env", "CASEMATE_PASSPHRASE_FILE=/run/passphrase", sys.executable, "-m", "casemate", "service", "install")
    (host.root / "run/passphrase").unlink()
    service.wait_ready()
    assert "passphrase" in service.status()["assurance_reasons"][0]
    assert service.status()["assurance"] == "L1"
    assert "Japanese" in service.ask()


# --- by hand ----------------------------------------------------------------------------------------------------------

SETUP = """
import sys
from casemate import config
from casemate.device.home import Home
from casemate.device.service.setup import setup
setup(Home(config.home_path()), config.load(), begin=print)
"""
AGENT = """
import json, sys
from casemate import config
from casemate.device.home import Home
from casemate.device.service.run import run
run(Home(config.home_path()), config.load({"listen": "127.0.0.1:0"}), json.loads(sys.argv[1]))
"""
OWN_PLACE = 'mount --bind "$0" /mnt && mount -t tmpfs tmpfs /tmp && exec "$@"'


def ids(role):
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(f"casemate-{role}")
        return entry.pw_uid, entry.pw_gid
    owner = owner_of(role)
    return owner.uid, owner.gid


@pytest.fixture
def by_hand(tmp_path):
    """Start setup, agent and each unit's command under its uid, as systemd would, without it."""
    tmp_path.chmod(0o755)
    home, keys = tmp_path / "home", tmp_path / "keys"
    environ = {
        "PATH": "/usr/sbin:/usr/bin",
        "CASEMATE_HOME": str(home),
        "CASEMATE_KEYFILE": str(keys / "device.key"),
        "CASEMATE_CONFIG": str(tmp_path / "none.toml"),
    }
    saffron = Path(__file__).parents[2] / "src/casemate/data/saffron/saffron-q8_0.gguf"
    for command in (["-m", "casemate", "model", "add", str(saffron), "--name", "saffron"], ["-c", SETUP]):
        subprocess.run([sys.executable, *command], env=environ, check=True, capture_output=True, timeout=120)
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o755)
    key = credentials / f"casemate-keys_{Home(home).id}.key"
    shutil.copy(keys / "device.key", key)
    os.chown(key, *ids("vault"))
    processes = {}

    def start(role, *command, around=(), **more):
        uid, gid = ids(role)
        as_role = ["setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups", "--no-new-privs"]
        log = (tmp_path / "log").open("ab")
        processes[role] = subprocess.Popen(
            [*around, *as_role, sys.executable, "-P", *command],
            env={**environ, **more},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()

    def begin(*roles):
        for role in roles:
            around, more, place = (), {}, ["-m", "casemate.device.attach", role]
            if role == "vault":
                more = {"CREDENTIALS_DIRECTORY": str(credentials)}
            if role == "engine":
                place.append("saffron")
                around = ("unshare", "-nm", "--propagation", "private", "sh", "-c", OWN_PLACE, str(home))
                more = {"CASEMATE_HOME": "/mnt"}
            start(role, *place, around=around, **more)

    def status():
        try:
            return admin.ask(home / "run", "status")
        except CasemateError:
            return {"ready": False}

    start("agent", "-c", AGENT, json.dumps({role: ids(role)[0] for role in ROLES}))
    begin(*ROLES)
    try:
        ready = eventually(lambda: status()["ready"])
        assert ready, (tmp_path / "log").read_text()
        yield processes, begin, status, home
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def test_units_commands_join_by_hand_answer_and_die_with_the_agent(by_hand):
    processes, begin, status, home = by_hand
    endpoint = status()["endpoint"]
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(home / "run/default-app.key"), endpoint],
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    assert "Japanese" in done.stdout
    for role in ROLES:
        pid = deepest_child(processes[role].pid) if role == "engine" else processes[role].pid
        assert os.stat(f"/proc/{pid}").st_uid in {0, ids(role)[0]}  # root's, when it is not dumpable
    processes["vault"].kill()
    processes["vault"].wait()
    begin("vault")  # what Restart= does
    assert eventually(lambda: status()["ready"])
    processes["agent"].send_signal(signal.SIGKILL)
    for role in ROLES:
        assert processes[role].wait(CONTRACT * SLACK) != 0
    assert not eventually(lambda: status()["ready"], 0.5)


def test_without_its_agent_a_unit_waits_and_then_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(attach, "AGENT_WITHIN", 0.3)
    (tmp_path / "run/link").mkdir(parents=True)
    with pytest.raises(CasemateError, match="no agent listens"):
        attach.join(Home(tmp_path), "vault")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "run/link/agent.sock"))
    listener.close()
    with pytest.raises(CasemateError, match="no agent listens"):
        attach.join(Home(tmp_path), "vault")
