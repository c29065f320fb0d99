"""An engine (or the replay) in its real sandbox, driven as the agent, the vault and the gateway would."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from casemate.device import sandbox
from casemate.device.channel import Channel, ChannelClosed, pair
from casemate.device.engine import GATEWAY_FD_VARIABLE, SUPPLY_FD_VARIABLE
from casemate.device.home import owner_of
from casemate.device.process import CONTROL_FD_VARIABLE
from casemate.formats import ipc

ENGINE = "casemate.device.engine"
REPLAY = "casemate.device.replay"
WITHIN = 60.0
_F_ADD_SEALS = 1033
_SEALS = 1 | 2 | 4 | 8
QUESTION = "We are four people, can you find something Japanese, budget price?"


def saffron() -> bytes:
    return Path(str(resources.files("casemate") / "data/saffron/saffron-q8_0.gguf")).read_bytes()


def memory_file(data: bytes, *, sealed: bool = True) -> int:
    fd = os.memfd_create("weights", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, data)
    if sealed:
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    return fd


class Engine:
    """A started engine: its process and the far ends of its three links."""

    def __init__(self, process: subprocess.Popen[bytes], control: Channel, gateway: Channel, supply: Channel) -> None:
        self.process, self.control, self.gateway, self.supply = process, control, gateway, supply
        self._next = 0

    def order(self, **settings: Any) -> None:
        hello, _ = self.control.recv(WITHIN)
        assert isinstance(hello, ipc.Hello)
        self.control.send(ipc.Start(home="/nonexistent", settings=settings))

    def load(self, data: bytes, *, sealed: bool = True, size: int | None = None) -> None:
        fd = memory_file(data, sealed=sealed)
        self.supply.send(ipc.Weights("model", len(data) if size is None else size), [fd])
        os.close(fd)

    def told(self) -> Any:
        """Return the next message to the agent."""
        return self.control.recv(WITHIN)[0]

    def ask(self, kind: str = "chat", *, deadline: float = WITHIN, **params: Any) -> int:
        if kind == "chat":
            params.setdefault("messages", [{"role": "user", "content": QUESTION}])
        self._next += 1
        self.gateway.send(ipc.Generate(self._next, kind, params, deadline))
        return self._next

    def heard(self) -> Any:
        """Return the next message to the gateway."""
        return self.gateway.recv(WITHIN)[0]

    def answer(self, number: int) -> tuple[str, Any]:
        """Return the text and the ending of request *number*, the only one in flight."""
        text = ""
        while True:
            message = self.heard()
            assert message.id == number
            if not isinstance(message, ipc.Chunk):
                return text, message
            text += message.text

    def pid_inside(self) -> int:
        """Return the host's pid of the innermost process: the engine itself."""
        pid = self.process.pid
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split():
            pid = int(children[0])
        return pid


@contextlib.contextmanager
def spawned(module: str = ENGINE) -> Iterator[Engine]:
    control, gateway, supply = pair(), pair(), pair()
    owner = owner_of("engine")
    plan = sandbox.SandboxPlan(
        module=module,
        fds={
            CONTROL_FD_VARIABLE: control[1].fileno(),
            GATEWAY_FD_VARIABLE: gateway[1].fileno(),
            SUPPLY_FD_VARIABLE: supply[1].fileno(),
        },
        uid=owner.uid if owner else None,
        gid=owner.gid if owner else None,
    )
    process = sandbox.spawn(plan)
    for _, theirs in (control, gateway, supply):
        theirs.close()
    engine = Engine(
        process,
        Channel(control[0], ipc.ChildToAgent),
        Channel(gateway[0], ipc.FromEngine),
        Channel(supply[0], ipc.Weights),
    )
    try:
        yield engine
    finally:
        process.kill()
        process.wait(WITHIN)
        for link in (engine.control, engine.gateway, engine.supply):
            link.close()


@contextlib.contextmanager
def ready(**settings: Any) -> Iterator[Engine]:
    """Run an engine that serves Saffron; `engine.facts` is what it said of itself."""
    with spawned() as engine:
        engine.order(**settings)
        engine.load(saffron())
        said = engine.told()
        assert isinstance(said, ipc.Ready), said
        engine.facts = said.facts
        yield engine


@contextlib.contextmanager
def replaying(chunks: list[str], **settings: Any) -> Iterator[Engine]:
    with spawned(REPLAY) as engine:
        engine.order(chunks=chunks, **settings)
        said = engine.told()
        assert isinstance(said, ipc.Ready), said
        engine.facts = said.facts
        yield engine


def ended(link: Channel) -> bool:
    """Return whether *link* is at its end, soon."""
    try:
        while True:
            link.recv(WITHIN)
    except ChannelClosed:
        return True
