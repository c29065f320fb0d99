"""The gateway process: sockets, links and timers around the application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Coroutine
from typing import Any, Final

from prometheus_client import disable_created_metrics

from casemate.clock import SystemClock
from casemate.device.apps import AppSet, overridden, read_apps, signature
from casemate.device.channel import ChannelClosed
from casemate.device.gateway.context import Gateway, assemble
from casemate.device.gateway.listener import Listener
from casemate.device.gateway.rehearsal import rehearse
from casemate.device.gateway.routes import build_app
from casemate.device.gateway.scrape import MetricsApp
from casemate.device.gateway.shell import fault_place
from casemate.device.gateway.shield import GuardShield
from casemate.device.gateway.tls import is_loopback, server_context
from casemate.device.process import Child
from casemate.errors import CasemateError, ConfigError
from casemate.formats import ipc
from casemate.formats.policy import AppPolicy, parse_policy
from casemate.guard import Guard

APPS_EVERY: Final = 0.3
"""Seconds between looks at the apps directory: a change is live within one second."""
REPORT_EVERY: Final = 5.0
COUNTED_EVERY: Final = 5.0
DRAIN_SECONDS: Final = 1.2
"""How long answers in flight may still run after the agent asked to stop."""

_log = logging.getLogger("casemate.gateway")


class Process:
    """One running gateway."""

    def __init__(self, child: Child) -> None:
        """Serve what *child* was handed; see `run`."""
        self._child = child
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._policies: dict[str, AppPolicy] = {}
        self._rehearsals: set[asyncio.Task[None]] = set()
        self._signature = signature(child.home / "apps")
        settings = child.settings
        self.gateway: Gateway = assemble(
            clock=SystemClock(),
            shield=GuardShield(Guard.default()),
            apps=AppSet({}),
            models=tuple(settings.get("models", ())),
            hosts=frozenset(str(name).lower() for name in settings.get("hosts", ())),
            queue=int(settings.get("queue", 8)),
            seconds=float(settings.get("deadline", 120)),
            secret=secrets.token_bytes(32),
            on_stuck=self._report_stuck,
        )

    async def run(self) -> None:
        """Listen until the agent closes the link, then let answers in flight end for `DRAIN_SECONDS`.

        Raises:
            ConfigError: off loopback without TLS, or the certificate does not work.

        """
        fds = self._child.fds
        listen = socket.socket(fileno=fds["listen"])
        tls = self._tls(listen)
        self.gateway.audit.attach(socket.socket(fileno=fds["journal"]))
        self._load_apps()
        listeners = [Listener(build_app(self.gateway), listen, tls)]
        if "metrics" in fds:
            listeners.append(Listener(MetricsApp(self.gateway), socket.socket(fileno=fds["metrics"])))
        timers = (self._watch_apps(), self._report(), self._tell_counts())
        for work in (*(listener.serve() for listener in listeners), *timers):
            self._spawn(work)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_fault)
        loop.add_reader(self._child.control.fileno(), self._on_control)
        self._child.ready()
        self.gateway.screening.warm_up()
        await self._stop.wait()
        for listener in listeners:
            listener.should_exit = True
        await asyncio.wait(self._tasks[: len(listeners)], timeout=DRAIN_SECONDS)
        self.gateway.close()

    def _tls(self, listen: socket.socket) -> Any:
        fds = self._child.fds
        if "tls.certificate" in fds and "tls.key" in fds:
            return server_context(f"/proc/self/fd/{fds['tls.certificate']}", f"/proc/self/fd/{fds['tls.key']}")
        host = listen.getsockname()[0] if listen.family in {socket.AF_INET, socket.AF_INET6} else "127.0.0.1"
        if not is_loopback(host):
            raise ConfigError(
                f"refusing to serve {host} without TLS", hint="set tls.certificate and tls.key, or listen on 127.0.0.1"
            )
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._died)
        self._tasks.append(task)

    def _died(self, task: asyncio.Task[None]) -> None:
        """End the process when a part of it ended: the agent starts a whole one again."""
        if not task.cancelled() and task.exception() is not None:
            _log.error("the gateway lost a task: %s", type(task.exception()).__name__)
            os._exit(1)

    # -- the agent's link

    def _on_control(self) -> None:
        try:
            while True:
                message, fds = self._child.control.recv(5.0)
                self._obey(message, fds)
                if not self._child.control.buffered:
                    return
        except (ChannelClosed, CasemateError, OSError):
            asyncio.get_running_loop().remove_reader(self._child.control.fileno())
            self._stop.set()

    def _obey(self, message: Any, fds: list[int]) -> None:
        if isinstance(message, ipc.Ping):
            self._child.control.send(ipc.Pong(n=message.n))
        elif isinstance(message, ipc.EngineUp):
            self.gateway.engines.up(message, socket.socket(fileno=fds[0]))
        elif isinstance(message, ipc.EngineDown):
            self.gateway.engines.down(message)
        elif isinstance(message, ipc.EngineHold):
            self.gateway.engines.hold(message.model)
        elif isinstance(message, ipc.Rehearse):
            rehearsal = asyncio.ensure_future(self._rehearse(message))
            self._rehearsals.add(rehearsal)
            rehearsal.add_done_callback(self._rehearsals.discard)
        elif isinstance(message, ipc.TakePolicy):
            self._take_policy(message)
        elif isinstance(message, ipc.Attach):
            self.gateway.audit.attach(socket.socket(fileno=fds[0]))
        else:
            for fd in fds:
                os.close(fd)

    def _report_stuck(self, model: str) -> None:
        self._tell(ipc.EngineStuck(model=model))

    def _tell(self, message: ipc.Message) -> None:
        with contextlib.suppress(ChannelClosed, OSError):
            self._child.control.send(message)

    def _take_policy(self, message: ipc.TakePolicy) -> None:
        """Serve under a generation's policies and guard data from now on; what does not parse is refused whole."""
        try:
            policies = {name: parse_policy(text.encode(), source=name) for name, text in message.apps.items()}
            guard = Guard.from_bytes(message.guard) if message.guard else Guard.default()
        except CasemateError as error:
            self.gateway.audit.apps_changed(f"refused the generation's policy: {error.message}")
            return
        self._policies = policies
        self.gateway.screening.shield = GuardShield(guard)
        self._load_apps()

    async def _rehearse(self, wanted: ipc.Rehearse) -> None:
        try:
            answer = await rehearse(self.gateway, wanted)
        except Exception as error:  # noqa: BLE001 - as an app would see it; the log gets a place, not a message
            _log.error("a rehearsal failed: %s", fault_place(error))
            answer = ipc.Rehearsed(wanted.id, error="internal_error")
        self._tell(answer)

    # -- timers

    async def _watch_apps(self) -> None:
        while True:
            await asyncio.sleep(APPS_EVERY)
            if signature(self._child.home / "apps") != self._signature:
                self._load_apps()

    def _load_apps(self) -> None:
        """Take the apps as they are on disk; when they cannot be read, keep the old ones and say so."""
        directory = self._child.home / "apps"
        self._signature = signature(directory)
        try:
            fresh = read_apps(directory)
        except CasemateError as error:
            self.gateway.apps_readable = False
            self.gateway.audit.apps_changed(f"kept the old apps: {error.message}")
            return
        self.gateway.take_apps(overridden(fresh, self._policies))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY)
            self.gateway.report_wrong_keys()

    async def _tell_counts(self) -> None:
        while True:
            await asyncio.sleep(COUNTED_EVERY)
            if counted := self.gateway.tally.take():
                self._tell(counted)


def _on_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught: where, never with its message, which may quote a prompt."""
    del loop
    error = context.get("exception")
    _log.error("a fault nobody caught: %s", fault_place(error) if error else "without an exception")


def run(child: Child) -> None:
    """Serve until the agent goes away."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    logging.basicConfig(level=logging.WARNING, format="gateway: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it would log every malformed request of anybody

    async def serve() -> None:
        await Process(child).run()

    try:
        asyncio.run(serve())
    except CasemateError as error:
        child.fatal(error)
    except Exception as error:  # noqa: BLE001 - the agent starts a new one; the log gets a place, not a message
        _log.error("the gateway failed: %s", fault_place(error))
        os._exit(1)
    os._exit(0)
