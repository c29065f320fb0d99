"""The step before each start, and what the agent takes from it."""

from __future__ import annotations

import contextlib
import json
import os
import socket

import pytest

from casemate import config
from casemate.device import models
from casemate.device.attach import LINK_SOCKET
from casemate.device.home import Home
from casemate.device.journal import LogFiles, verify
from casemate.device.service import facts, run, setup
from casemate.errors import BusyError, ConfigError, NotFoundError
from support import homes

SETTINGS = config.load({"listen": "127.0.0.1:0"}, {})


@pytest.fixture
def home(home_path, monkeypatch):
    """Return a home with a model and no keystore yet beyond what adding it made."""
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)
    bench = homes.make(home_path.parent, monkeypatch)
    monkeypatch.setenv("CASEMATE_KEYFILE", str(bench.keyfile))
    bench.add()
    bench.add(name="menu")
    home_path.parent.chmod(0o755)
    return bench.home


def test_a_fresh_home_becomes_one_that_can_be_served(home):
    begun = []
    found = setup.setup(home, SETTINGS, begin=begun.append)
    assert begun == list(found.models) == ["menu", "tiny"]
    assert facts.parse((home.run / facts.FILE_NAME).read_bytes()) == found
    assert (home.run / "default-app.key").exists()
    assert (home.run / LINK_SOCKET).parent.stat().st_mode & 0o777 == 0o711
    assert verify(LogFiles(home.journal)).size > 0


def test_it_may_run_before_every_start(home):
    first = setup.setup(home, SETTINGS, begin=lambda _name: None)
    key = (home.run / "default-app.key").read_text()
    assert setup.setup(home, SETTINGS, begin=lambda _name: None) == first
    assert (home.run / "default-app.key").read_text() == key


def test_settings_choose_the_models(home):
    chosen = config.load({"listen": "127.0.0.1:0", "models": "tiny"}, {})
    assert list(setup.setup(home, chosen, begin=lambda _name: None).models) == ["tiny"]
    missing = config.load({"listen": "127.0.0.1:0", "models": "tiny,other"}, {})
    with pytest.raises(NotFoundError, match="other"):
        setup.setup(home, missing, begin=lambda _name: pytest.fail("nothing may start"))


def test_a_home_without_a_model_starts_nothing(home_path):
    home_path.parent.chmod(0o755)
    with pytest.raises(NotFoundError, match="no model to serve") as caught:
        setup.setup(Home(home_path), SETTINGS, begin=lambda _name: pytest.fail("nothing may start"))
    assert "casemate model add" in caught.value.hint


def test_an_address_off_loopback_without_tls_starts_nothing(home):
    with pytest.raises(ConfigError, match="without TLS"):
        setup.setup(home, config.load({"listen": "0.0.0.0:8443"}, {}), begin=lambda _name: None)
    assert not (home.run / facts.FILE_NAME).exists()


def test_while_the_service_runs_its_engines_are_asked_for_again(home):
    setup.setup(home, SETTINGS, begin=lambda _name: None)
    begun = []
    with Home(home.path).lock():
        with pytest.raises(BusyError):  # somebody's `up`, not the service
            setup.setup(home, SETTINGS, begin=begun.append)
        assert begun == []
        (home.run / LINK_SOCKET).touch()
        setup.setup(home, SETTINGS, begin=begun.append)
    assert begun == ["menu", "tiny"]


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"models": {}}, {"models": "all"}, {"extra": 1}, {"owner_public": "?"}]
)
def test_facts_that_setup_does_not_write_are_refused(home, change):
    setup.setup(home, SETTINGS, begin=lambda _name: None)
    file = home.run / facts.FILE_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with contextlib.ExitStack() as held, pytest.raises(ConfigError, match=r"service\.json"):
        run._plan(home, SETTINGS, held)


def test_the_agents_plan_holds_no_way_in(home):
    setup.setup(home, SETTINGS, begin=lambda _name: None)
    with contextlib.ExitStack() as held:
        plan = run._plan(home, SETTINGS, held)
        assert plan.unlock == {}
        assert [model.name for model in plan.models] == ["menu", "tiny"]
        assert plan.listen.getsockname()[0] == "127.0.0.1"


def test_an_agent_before_setup_says_what_to_do(home):
    with contextlib.ExitStack() as held, pytest.raises(NotFoundError) as caught:
        run._plan(home, SETTINGS, held)
    assert "casemate-setup" in caught.value.hint


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_service_manager_is_told(tmp_path, monkeypatch, kind):
    name = str(tmp_path / "notify") if kind == "path" else f"@casemate-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name if kind == "path" else "\0" + name[1:])
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        run.notify("READY=1")
        assert manager.recv(64) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    run.notify("READY=1")  # nobody to tell: nothing happens
