"""Another user of the machine speaks to the agent's control socket, to read its state or to write into its journal.

The file's mode and folder keep strangers out; should an admin open both, the agent still asks the kernel who calls. The
control is the same question from the device's own user, and from the stranger with that question switched off.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import textwrap
from collections.abc import Sequence
from typing import Any

import pytest

from casemate.device import admin
from casemate.formats import ipc

STRANGER = 61991
ASK = """
    import socket, struct, sys
    body = b'{"t":"ask","verb":"status"}'
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    try:
        sock.connect(sys.argv[1])
        sock.sendall(struct.pack("<I", len(body)) + body)
        print("answered" if sock.recv(4) else "hung up")
    except PermissionError:
        print("no way in")
    except (BrokenPipeError, ConnectionResetError):
        print("hung up")
"""


async def no_vault(_request: ipc.ToVault, _fds: Sequence[int]) -> ipc.FromVault:
    raise AssertionError


async def ask(path: str, uid: int | None) -> str:
    """Ask for the status as *uid* (None: as ourselves)."""
    identity = {"user": uid, "group": uid, "extra_groups": []} if uid is not None else {}
    child = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", "-I", "-c", textwrap.dedent(ASK), path, stdout=subprocess.PIPE, cwd="/", **identity
    )
    out, _ = await asyncio.wait_for(child.communicate(), 30)
    return out.decode().strip()


def outcome(folder, *, uid: int | None, opened: bool) -> str:
    """Serve a control socket in *folder*, opened to everybody or as the agent makes it, and ask as *uid*."""

    async def scenario() -> str:
        async def answer(question: ipc.Ask) -> dict[str, str]:
            return {"verb": question.verb}

        server = admin.AdminServer(folder / "agent.sock", answer, no_vault)
        await server.start()
        if opened:
            (folder / "agent.sock").chmod(0o666)
        try:
            return await ask(str(folder / "agent.sock"), uid)
        finally:
            server.close()

    return asyncio.run(scenario())


@pytest.mark.root
def test_a_stranger_finds_no_way_in(tmp_path):
    assert outcome(tmp_path, uid=STRANGER, opened=False) == "no way in"


@pytest.mark.root
def test_a_stranger_who_gets_in_is_hung_up_on(tmp_path):
    assert outcome(tmp_path, uid=STRANGER, opened=True) == "hung up"


def test_control_the_devices_own_user_is_answered(tmp_path):
    assert outcome(tmp_path, uid=None, opened=False) == "answered"


@pytest.mark.root
def test_control_without_the_question_the_stranger_is_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(admin, "_is_trusted", lambda *_: True)
    assert outcome(tmp_path, uid=STRANGER, opened=True) == "answered"


def test_the_socket_is_private_from_the_start(tmp_path):
    async def scenario() -> int:
        server = admin.AdminServer(tmp_path / "agent.sock", lambda _: asyncio.sleep(0, {}), no_vault)
        await server.start()
        mode = os.stat(tmp_path / "agent.sock").st_mode & 0o777
        server.close()
        return mode

    assert asyncio.run(scenario()) == 0o600


TITLE = "\x1b]0;owned\x07\x1b[2J\u202e"


def read_status(folder, **state: Any) -> dict[str, Any]:
    """Read the status of an agent that says *state*, as the command line does."""

    async def scenario() -> dict[str, Any]:
        async def answer(_question: ipc.Ask) -> dict[str, Any]:
            return state

        server = admin.AdminServer(folder / "agent.sock", answer, no_vault)
        await server.start()
        try:
            return await asyncio.to_thread(admin.ask, folder, "status")
        finally:
            server.close()

    return asyncio.run(scenario())


def test_a_taken_over_agent_does_not_steer_the_terminal_of_who_asks(tmp_path):
    told = read_status(tmp_path, models=[{"reason": TITLE, TITLE: 1}], endpoint=TITLE, pid=7, ready=True)
    assert all(text.isprintable() for text in (told["endpoint"], told["models"][0]["reason"], *told["models"][0]))
    assert (told["pid"], told["ready"]) == (7, True)


def test_control_the_raw_answer_would(tmp_path, monkeypatch):
    monkeypatch.setattr(admin, "_printable", lambda value: value)
    assert read_status(tmp_path, endpoint=TITLE)["endpoint"] == TITLE
