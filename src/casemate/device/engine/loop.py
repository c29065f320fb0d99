"""The two links of a process that answers requests: the agent's (alive?) and the gateway's (work)."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import msgspec

from casemate.device import process
from casemate.device.channel import Channel, ChannelClosed
from casemate.device.engine import GATEWAY_FD_VARIABLE
from casemate.device.engine.serving import Model, Serving
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import ipc

DEFAULT_CONTEXT: Final = 8192


class ServingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `Start.settings` that says how requests are served."""

    context: int = 0  # tokens per request; 0: the model's own, at most DEFAULT_CONTEXT
    slots: int = 2  # requests that run at a time
    waiting: int = 8  # requests held beyond those
    stall_seconds: float = 90.0  # a running request whose model is silent this long: the engine is stuck


def gateway_link() -> Channel:
    """Return the inherited link to the gateway."""
    return Channel(socket.socket(fileno=int(os.environ[GATEWAY_FD_VARIABLE])), ipc.ToEngine)


def serving(
    child: process.Child, gateway: Channel, model: Model, settings: ServingSettings, *, context: int
) -> Serving:
    """Return what runs requests of up to *context* tokens; a stuck model or a closed link ends the process."""

    def stalled() -> None:
        child.fatal(OperationError("the model stopped answering"), transient=True)

    return Serving(
        gateway,
        model,
        slots=settings.slots,
        waiting=settings.waiting,
        context=context,
        stall=settings.stall_seconds,
        on_stall=stalled,
        on_closed=lambda: os._exit(0),
    )


def serve(child: process.Child, gateway: Channel, jobs: Serving, status: int | None = None) -> NoReturn:
    """Read both links until one closes; everything slow happens on other threads.

    *status* is a descriptor of /proc/self/status, from before the sandbox: where the process reads its own size.
    """
    poll = select.poll()
    poll.register(child.control, select.POLLIN)
    poll.register(gateway, select.POLLIN)
    try:
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if child.control.fileno() in ready:
                _answer_agent(child, status)
            if gateway.fileno() in ready:
                _take_requests(gateway, jobs)
    except ChannelClosed:
        os._exit(0)
    except UntrustedDataError as error:
        child.fatal(error)


def _answer_agent(child: process.Child, status: int | None) -> None:
    for message in _messages(child.control):
        if isinstance(message, ipc.Ping):
            child.control.send(ipc.Pong(message.n, _most_memory(status) if status is not None else 0))


def _most_memory(status: int) -> int:
    """Return the peak of this process's memory in KiB; 0 when the kernel does not say."""
    os.lseek(status, 0, os.SEEK_SET)
    line = next((row for row in os.read(status, 8192).splitlines() if row.startswith(b"VmHWM:")), b"VmHWM: 0 kB")
    return int(line.split()[1])


def _take_requests(gateway: Channel, jobs: Serving) -> None:
    for message in _messages(gateway):
        if isinstance(message, ipc.Generate):
            jobs.submit(message)
        else:
            jobs.cancel(message)


def _messages(channel: Channel) -> Iterator[Any]:
    """Yield what one readable moment of *channel* brought, without waiting for more."""
    yield channel.recv()[0]
    while channel.buffered:
        yield channel.recv()[0]
