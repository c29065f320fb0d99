"""docs/fleet.md, followed literally: every command of it, in its order, with a device that lives through it all."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from casemate.cli.main import run
from support.fleet import Device, Server, until

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "fleet.md"
COMMAND = re.compile(r"^\$ (casemate .*)$", re.MULTILINE)


@pytest.fixture
def world(tmp_path):
    (tmp_path / "usb").mkdir()
    servers = {}
    yield tmp_path, servers
    for server in servers.values():
        server.stop()


@pytest.mark.long
def test_the_operators_guide_works_as_it_is_written(world, capsys):
    tmp_path, servers = world
    devices, section = [], ""

    def start(directory):
        for server in servers.values():
            server.stop()
        servers[directory] = Server(Path(directory)).start()
        for device in devices:
            device.server = servers[directory]

    def current():
        return next(server for server in reversed(servers.values()) if server.process)

    def follow(line):
        local = line.replace("/srv", str(tmp_path)).replace("/media/usb", str(tmp_path / "usb"))
        words = shlex.split(local)[1:]
        if words[:2] == ["fleet", "serve"]:
            start(words[words.index("--dir") + 1])
            return
        assert run(words) == 0, line
        said = capsys.readouterr().out.strip().splitlines()
        if words[1:3] == ["token", "create"]:
            devices.append(Device(current(), tmp_path / f"machine-{len(devices)}", "till-7").enrol(said[-1]))
            assert devices[-1].checkin().status == 200

    for part in re.split(r"^## ", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        section = part.partition("\n")[0]
        for line in COMMAND.findall(part):
            follow(line)
        if section == "Replace a device":
            until(lambda: devices[0].checkin().status == 401, 5)
            assert current().device("till-7")["replaces"] == devices[0].id
        if section == "Lose the database, or the server":
            assert devices[-1].checkin().status == 200
            assert devices[0].checkin().status == 401
        if section == "Rotate the authority":
            before = devices[-1]
            start(current().directory)
            assert before.checkin().status == 200  # issued by the intermediate before
            newer = Device(current(), tmp_path / "after", "after-rotation").enrol()
            assert newer.checkin().status == 200
    assert len(devices) == 2
    assert section == "What it does not do"
