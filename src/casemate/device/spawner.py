"""Root's part of `casemate up`, kept as small as it can be: start processes under their own uids, and bury them.

The agent reads what every process says, a taken-over engine included, so it must not be root. Root forks: the child
becomes the agent, with a uid of its own; the parent stays root and understands two requests, `Spawn` a role of a fixed
list and `Kill` a process it started. It decides who each process becomes and what unlocks the vault; the agent can
choose neither. When one of the two dies the other ends, and with them every process of the device. What a process
forked falls to root when that process dies, and is ended too: nobody stays behind under a uid of the device.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from casemate.device import channel
from casemate.device.channel import AsyncChannel, Channel, ChannelClosed
from casemate.device.children import Launcher, Process, exit_reason, start_python
from casemate.device.fleet import fence
from casemate.device.fleet.membership import overwrite_and_remove
from casemate.device.home import Owner, owner_of
from casemate.device.launch import Launchers, start_engine
from casemate.device.process import drop_privileges, harden
from casemate.errors import CasemateError, HostError, OperationError, UntrustedDataError
from casemate.formats import ipc

CORE_ROLES: Final = frozenset({"journal", "vault", "gateway", "link", "update", "attester"})
_LINKS: Final = {"engine": 3}
_STOP_WITHIN: Final = 8.0
_MOST_PROCESSES: Final = 64
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc = ctypes.CDLL(None, use_errno=True)


# --- root's side ------------------------------------------------------------------------------------------------------


def serve_as(agent: Owner, unlock: Mapping[str, int], work: Callable[[Launchers], int]) -> int:
    """Fork; run *work* as *agent* in the child, spawn for it in the parent; return the agent's exit code.

    *unlock* are the descriptors that open the keystore: they reach the vault and nobody else.

    Raises:
        HostError: the code cannot be shown to the agent's uid.

    """
    ours, theirs = channel.pair()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ours.close()
        for fd in unlock.values():
            os.close(fd)
        os._exit(_be_agent(agent, parent, theirs, work))
    theirs.close()
    return _Spawner(child, ours, unlock).run()


def _be_agent(owner: Owner, parent: int, link: socket.socket, work: Callable[[Launchers], int]) -> int:
    try:
        drop_privileges(owner)
        harden()
        if os.getppid() != parent:
            return 1
        return work(SpawnerLaunchers(link))
    except BaseException:  # noqa: BLE001 - a forked child must not run its parent's clean-up
        traceback.print_exc()
        return 1


class _Spawner:
    """The parent: one link, the processes it started, and signals passed on to the agent."""

    def __init__(self, agent: int, link: socket.socket, unlock: Mapping[str, int]) -> None:
        self._agent = agent
        self._channel = Channel(link, ipc.ToSpawner)
        self._unlock = unlock
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._events = selectors.DefaultSelector()
        self._reaps = False

    def run(self) -> int:
        self._reaps = _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        self._events.register(self._channel, selectors.EVENT_READ, self._on_request)
        agent_end = os.pidfd_open(self._agent)
        self._events.register(agent_end, selectors.EVENT_READ, None)
        try:
            while True:
                for key, _ in self._events.select():
                    if key.data is None:
                        _, status = os.waitpid(self._agent, 0)
                        return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1
                    key.data()
        finally:
            self._end_all()

    def _pass_on(self, number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._agent, signal.SIGTERM if number == signal.SIGINT else number)

    def _on_request(self) -> None:
        self._answer_one()
        while self._channel.fileno() >= 0 and self._channel.buffered:  # came in the same read: no event tells of it
            self._answer_one()

    def _answer_one(self) -> None:
        try:
            message, fds = self._channel.recv(1.0)
        except (ChannelClosed, UntrustedDataError, TimeoutError):
            self._events.unregister(self._channel)  # the agent is ending, or lies: its end is noticed next
            self._channel.close()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._agent_handle(), signal.SIGTERM)
            return
        try:
            if isinstance(message, ipc.Kill):
                self._kill(message.pid)
            elif isinstance(message, ipc.Fence):
                self._channel.send(ipc.Served(id=message.id, why=_fence(message.gate)))
            elif isinstance(message, ipc.ShredKeyfile):
                self._channel.send(ipc.Served(id=message.id, why=self._shred()))
            else:
                self._spawn(message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _agent_handle(self) -> int:
        return next(key.fd for key in self._events.get_map().values() if key.data is None)

    def _spawn(self, request: ipc.Spawn, links: Sequence[int]) -> None:
        try:
            process = self._start(request, links)
        except (HostError, OSError) as error:
            self._channel.send(ipc.Spawned(id=request.id, pid=0, why=str(error)))
            return
        self._processes[process.pid] = process
        handle = os.pidfd_open(process.pid)
        self._events.register(handle, selectors.EVENT_READ, lambda: self._bury(handle, process))
        self._channel.send(ipc.Spawned(id=request.id, pid=process.pid))

    def _start(self, request: ipc.Spawn, links: Sequence[int]) -> subprocess.Popen[bytes]:
        if len(links) != _LINKS.get(request.role, 1):
            raise HostError(f"{request.role} does not take {len(links)} links")
        if len(self._processes) >= _MOST_PROCESSES:
            raise HostError(f"{_MOST_PROCESSES} processes run already")
        if request.role == "engine":
            return start_engine(links, replay=request.replay)
        if request.role not in CORE_ROLES:
            raise HostError(f"no process has the role {request.role!r}")
        owner = owner_of(request.role)
        if owner is None:
            raise HostError(f"{request.role} has no uid of its own")
        held = self._unlock if request.role == "vault" else {}
        return start_python(request.role, owner, links[0], held)

    def _bury(self, handle: int, process: subprocess.Popen[bytes]) -> None:
        self._events.unregister(handle)
        os.close(handle)
        reason = exit_reason(process.wait())
        del self._processes[process.pid]
        self._end_strays()
        with contextlib.suppress(ChannelClosed, OSError):
            self._channel.send(ipc.Ended(pid=process.pid, reason=reason))

    def _shred(self) -> str:
        """Destroy the key file we hold open, the only file this request can ever mean."""
        if "keyfile" not in self._unlock:
            return "there is no key file"
        place = Path(f"/proc/self/fd/{self._unlock['keyfile']}").readlink()
        try:
            return "" if overwrite_and_remove(place) else "the key file is not where it was"
        except OperationError as error:
            return error.message

    def _kill(self, pid: int) -> None:
        if pid in self._processes:
            self._processes[pid].kill()

    def _end_all(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_WITHIN)
        self._processes.clear()
        self._end_strays()

    def _end_strays(self) -> None:
        """End what a process forked and left behind: it fell to us when its parent died."""
        while self._reaps and (strays := _children() - self._processes.keys() - {self._agent}):
            for pid in strays:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


def _fence(wanted: bytes) -> str:
    """Put our table up or take it down; returns why that could not be done."""
    try:
        gate = fence.parse_gate(wanted)
        fence.take_down() if gate is None else fence.put_up(gate)
    except CasemateError as error:
        return error.message
    return ""


def _children() -> set[int]:
    """Return every child of this process, whichever thread it fell to."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.update(map(int, (task / "children").read_text(encoding="ascii").split()))
    return found


# --- the agent's side -------------------------------------------------------------------------------------------------


class SpawnedProcess:
    """A process that the spawner started."""

    def __init__(self, pid: int, spawner: SpawnerLaunchers) -> None:
        """Stand for *pid*."""
        self.pid = pid
        self._spawner = spawner

    def watch(self, ended: Callable[[str], None]) -> None:
        """Have *ended* called with how it ended."""
        self._spawner.watch(self.pid, ended)

    def kill(self) -> None:
        """Ask for its end."""
        self._spawner.kill(self.pid)


class SpawnerLaunchers:
    """Processes that root starts on the agent's request (`device.launch.Launchers`)."""

    beside = True

    def __init__(self, link: socket.socket) -> None:
        """Ask over *link*, once a loop runs."""
        self._link = link
        self._channel: AsyncChannel | None = None
        self._next = 0
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._watched: dict[int, Callable[[str], None]] = {}
        self._ended: dict[int, str] = {}
        self._reader: asyncio.Task[None] | None = None

    async def fence(self, gate: bytes) -> str:
        """Have root do it."""
        return await self._serve(ipc.Fence(id=self._number(), gate=gate))

    async def shred_keyfile(self) -> bool:
        """Have root do it."""
        return not await self._serve(ipc.ShredKeyfile(id=self._number()))

    async def _serve(self, request: ipc.Fence | ipc.ShredKeyfile) -> str:
        answer = self._asked[request.id] = asyncio.get_running_loop().create_future()
        try:
            await self._open().send(request)
            served: ipc.Served = await answer
        except ChannelClosed:
            return "the process that starts the others is gone"
        return served.why

    def _number(self) -> int:
        self._next += 1
        return self._next

    def core(self, role: str) -> Launcher:
        """Have the process of *role* started."""
        return lambda inherited: self._launch(role, "", inherited, replay=False)

    def engine(self, model: str, *, replay: bool) -> Launcher:
        """Have an engine started."""
        return lambda inherited: self._launch("engine", model, inherited, replay=replay)

    async def _launch(
        self, role: str, model: str, inherited: Sequence[int], *, replay: bool
    ) -> tuple[Process, socket.socket]:
        ours, theirs = channel.pair()
        with theirs:
            number = self._number()
            answer = self._asked[number] = asyncio.get_running_loop().create_future()
            links = [theirs.fileno(), *inherited]
            request = ipc.Spawn(id=number, role=role, links=len(links), model=model, replay=replay)
            try:
                await self._open().send(request, links)
                spawned = await answer
            except ChannelClosed as error:
                ours.close()
                raise OperationError("the process that starts the others is gone") from error
            except asyncio.CancelledError:
                ours.close()
                raise
        if not spawned.pid:
            ours.close()
            raise HostError(f"cannot start {role}: {spawned.why}", hint="run `casemate doctor`")
        return SpawnedProcess(spawned.pid, self), ours

    def _open(self) -> AsyncChannel:
        if self._channel is None:
            self._channel = AsyncChannel(self._link, ipc.FromSpawner)
            self._reader = asyncio.ensure_future(self._read(self._channel))
        return self._channel

    async def _read(self, link: AsyncChannel) -> None:
        async for message, _ in link:
            if isinstance(message, ipc.Spawned | ipc.Served):
                answer = self._asked.pop(message.id)
                if not answer.done():
                    answer.set_result(message)
                elif isinstance(message, ipc.Spawned) and message.pid:  # whoever wanted it was cancelled meanwhile
                    self._end(message.pid)
            elif message.pid in self._watched:
                self._watched.pop(message.pid)(message.reason)
            else:
                self._ended[message.pid] = message.reason
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ChannelClosed())

    def watch(self, pid: int, ended: Callable[[str], None]) -> None:
        """Call *ended* when *pid* is gone, also when it went before anybody watched."""
        if pid in self._ended:
            asyncio.get_running_loop().call_soon(ended, self._ended.pop(pid))
        else:
            self._watched[pid] = ended

    def kill(self, pid: int) -> None:
        """Ask the spawner to end *pid*."""
        if pid in self._watched:
            self._end(pid)

    def _end(self, pid: int) -> None:
        with contextlib.suppress(ChannelClosed, OperationError):
            self._open().post(ipc.Kill(pid=pid))
