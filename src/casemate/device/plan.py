"""What `up` decided before the first process starts, and one model's engine as the agent sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from casemate.config import Settings
from casemate.device.children import ChildProcess
from casemate.device.home import Home
from casemate.device.supervisor import RestartPolicy
from casemate.formats import ipc

if TYPE_CHECKING:  # an agent that belongs to no fleet needs no cryptography
    from casemate.device.fleet.membership import Member


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model this device serves: its name and container, or a recorded stream for tests and the demo."""

    name: str
    path: str
    replay: tuple[str, ...] = ()
    container: str = ""
    """What the container is called, when that is not `name`: a generation's."""
    gate: str = ""
    """What the fleet calls the model, when its key comes from there, for a lease."""
    digest: str = ""
    """SHA-256 of the plain file as the container claims it; "": nobody looked."""


@dataclasses.dataclass(frozen=True)
class DevicePlan:
    """Everything `up` decided before the first process starts. Sockets are bound; `unlock` are open descriptors."""

    home: Home
    settings: Settings
    models: tuple[ServedModel, ...]
    listen: socket.socket
    metrics: socket.socket
    owner_public: str
    unlock: Mapping[str, int]
    tls: Mapping[str, int]
    notes: Mapping[str, Any]
    announce: Callable[[str], None]
    report: Callable[[str], None] = lambda _: None
    """Told of every process that dies, in a line for the person at the terminal, if there is one."""
    policy: ipc.TakePolicy = dataclasses.field(default_factory=ipc.TakePolicy)
    """What the generation says about apps and the guard."""
    member: Member | None = None
    """Whose orders are obeyed; None: nobody's."""
    policies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 (hex) of the policy file of each app."""
    on_trial: bool = False
    """The models are those of a generation on trial: one that does not start is for its health gate to judge."""
    update_uid: int | None = None
    """Who the update process is, when it is a unit of its own."""
    generation: str = ""
    """The content digest of the generation that is served; empty: none."""
    unsettled: bool = False
    """A trial has to be judged, or a soak to be ended, once the device runs: the update process does that."""


@dataclasses.dataclass
class Engine:
    """One model's engine, from the agent's side."""

    model: ServedModel
    policy: RestartPolicy
    child: ChildProcess | None = None
    digest: str = ""
    bytes: int = 0
    seconds: float = 0.0
    task: asyncio.Task[None] | None = None
    retired: bool = False
    """Another engine serves its model: this one ends when its last answer has."""
