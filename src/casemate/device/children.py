"""The agent's side of a child process: start it, watch it die, keep its link, prove that it still answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from casemate.device import channel
from casemate.device.channel import AsyncChannel, ChannelClosed
from casemate.device.home import Owner
from casemate.device.process import CONTROL_FD_VARIABLE, HELD_FDS_VARIABLE, IDENTITY_VARIABLE
from casemate.errors import CasemateError, HostError, OperationError, UntrustedDataError
from casemate.formats import ipc

HELLO_TIMEOUT: Final = 60.0
PING_EVERY: Final = 2.0
PONG_WITHIN: Final = 20.0


class Process(Protocol):
    """What the agent needs of a running program, whoever started it."""

    @property
    def pid(self) -> int:
        """The process id as the agent sees it."""
        ...

    def watch(self, ended: Callable[[str], None]) -> None:
        """Call *ended* once, in the running loop, with how it ended."""
        ...

    def kill(self) -> None:
        """End it now; a process that has ended is left alone."""
        ...


Launcher = Callable[[Sequence[int]], Awaitable[tuple[Process, socket.socket]]]
"""Makes a program run with these descriptors inherited; returns it and the agent's end of its control link."""


class OwnProcess:
    """A program that the agent itself started."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        """Hold *popen*."""
        self._popen = popen
        self._ended = False

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._popen.pid

    def watch(self, ended: Callable[[str], None]) -> None:
        """Wait for the end through a descriptor: no thread, no signal handler."""
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(self.pid)

        def reap() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._ended = True
            ended(exit_reason(self._popen.wait()))

        loop.add_reader(pidfd, reap)

    def kill(self) -> None:
        """End it now."""
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def own_launcher(spawn: Callable[[Sequence[int]], subprocess.Popen[bytes]]) -> Launcher:
    """Return a launcher around *spawn*, which gets the control link's other end as the first descriptor."""

    async def launch(inherited: Sequence[int]) -> tuple[Process, socket.socket]:
        ours, theirs = channel.pair()
        try:
            popen = spawn([theirs.fileno(), *inherited])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return OwnProcess(popen), ours

    return launch


class ChildDied(Exception):  # noqa: N818 - an event the supervisor decides about
    """The process is gone; `transient` says whether a restart may help."""

    def __init__(self, reason: str, *, transient: bool = True, error: CasemateError | None = None) -> None:
        """Keep why, and the error the child reported, if it could."""
        super().__init__(reason)
        self.reason = reason
        self.transient = transient
        self.error = error


def start_python(
    role: str, owner: Owner | None, control: int, held: Mapping[str, int] | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m casemate.device.<role>` with a small environment and a process group of its own.

    It drops to *owner*, speaks over the descriptor *control*, and inherits *held* under those names.
    """
    kept = held or {}
    environment = {
        **child_environment(),
        CONTROL_FD_VARIABLE: str(control),
        HELD_FDS_VARIABLE: ",".join(f"{name}={fd}" for name, fd in kept.items()),
        "CASEMATE_PARENT": str(os.getpid()),
    }
    if owner:
        environment[IDENTITY_VARIABLE] = f"{owner.uid}:{owner.gid}"
    return subprocess.Popen(
        [sys.executable, "-P", "-m", f"casemate.device.{role}"],
        env=environment,
        stdin=subprocess.DEVNULL,
        pass_fds=(control, *kept.values()),
        process_group=0,
    )


def child_environment() -> dict[str, str]:
    """Return what a child may inherit: no secret, no proxy, no Python switch but those named here."""
    kept = ("PATH", "LANG", "LC_ALL", "TZ", "COVERAGE_PROCESS_START")
    return {"PYTHONUNBUFFERED": "1", **{name: os.environ[name] for name in kept if name in os.environ}}


class ChildProcess:
    """A running child and its control link."""

    def __init__(self, role: str, process: Process, link: AsyncChannel) -> None:
        """Watch *process*, which speaks over *link*; use `start_child`."""
        self.role = role
        self.link = link
        self.facts: dict[str, Any] = {}
        self.fatal: ipc.Fatal | None = None
        self.memory = 0
        """The most it ever held, in KiB; 0 when it does not tell."""
        self._process = process
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[str] = self._loop.create_future()
        process.watch(self._on_exit)
        self._pings = 0
        self._last_pong = self._loop.time()

    @property
    def pid(self) -> int:
        """Return the process id as the agent sees it."""
        return self._process.pid

    def _on_exit(self, reason: str) -> None:
        if not self.exited.done():
            self.exited.set_result(reason)

    async def recv(self, timeout: float) -> tuple[Any, list[int]]:  # noqa: ASYNC109 - each step has its own deadline
        """Wait for the next message that is not `Fatal`.

        Raises:
            ChildDied: it exited, reported a fatal error, broke the protocol or said nothing for *timeout* seconds.

        """
        try:
            message, fds = await asyncio.wait_for(self.link.recv(), timeout)
        except TimeoutError:
            raise ChildDied(f"{self.role} did not answer within {timeout:.0f} s") from None
        except UntrustedDataError as error:
            raise ChildDied(f"{self.role} broke the protocol: {error}") from error
        except ChannelClosed:
            raise await self.obituary() from None
        if isinstance(message, ipc.Fatal):
            self.fatal = message
            raise await self.obituary()
        return message, fds

    async def obituary(self) -> ChildDied:
        """Return why the process ended, as well as it can be told."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.exited), 2.0)
        if self.fatal:
            return ChildDied(self.fatal.message, transient=self.fatal.transient, error=rebuild(self.fatal))
        if not self.exited.done():
            return ChildDied(f"{self.role} closed its link")
        return ChildDied(f"{self.role} {self.exited.result()}")

    def ponged(self, message: ipc.Pong) -> None:
        """Note an answer to a ping."""
        self.memory = message.memory
        self._last_pong = self._loop.time()

    async def keep_pinging(self) -> None:
        """Ping until the process hangs, then kill it (its death is handled where deaths are)."""
        self._last_pong = self._loop.time()
        while not self.exited.done():
            await asyncio.sleep(PING_EVERY)
            if self._loop.time() - self._last_pong > PONG_WITHIN:
                self.kill()
                return
            self._pings += 1
            with contextlib.suppress(ChannelClosed, OperationError):
                self.link.post(ipc.Ping(n=self._pings))

    def kill(self) -> None:
        """End it now."""
        if not self.exited.done():
            self._process.kill()

    async def stop(self, grace: float) -> None:
        """Close the link (every child exits on end of file), wait *grace* seconds, then kill."""
        self.link.close()
        try:
            await asyncio.wait_for(asyncio.shield(self.exited), grace)
        except TimeoutError:
            self.kill()
            await self.exited


async def start_child(
    role: str,
    launch: Launcher,
    *,
    home: str,
    settings: Mapping[str, Any],
    fds: Mapping[str, int],
    inherited: Sequence[int] = (),
) -> ChildProcess:
    """Start a child and hand it its `Start`; returns before it is ready.

    *fds* travel with `Start` under their names; *inherited* are passed at launch, for a child that cannot receive.

    Raises:
        ChildDied: it did not say hello, or went away; it is ended.
        HostError: the program cannot be started.

    """
    try:
        process, link = await launch(inherited)
    except OSError as error:
        raise HostError(f"cannot start {role}: {error}", hint="run `casemate doctor`") from error
    child = ChildProcess(role, process, AsyncChannel(link, ipc.ChildToAgent))
    try:
        hello, _ = await child.recv(HELLO_TIMEOUT)
        if not isinstance(hello, ipc.Hello) or hello.role != role:
            raise ChildDied(f"{role} did not introduce itself")  # noqa: TRY301 - one place ends a child that failed
        await child.link.send(ipc.Start(home=home, fds=tuple(fds), settings=dict(settings)), list(fds.values()))
    except (ChildDied, ChannelClosed) as error:
        child.kill()
        child.link.close()
        raise error if isinstance(error, ChildDied) else ChildDied(f"{role} went away as it started") from error
    except asyncio.CancelledError:  # it is not wanted any more, and nobody else knows of it
        child.kill()
        child.link.close()
        raise
    return child


async def wait_ready(child: ChildProcess, timeout: float) -> None:  # noqa: ASYNC109 - a deadline per role
    """Wait for `Ready`; keeps its facts.

    Raises:
        ChildDied: it ended first or was too slow.

    """
    message, _ = await child.recv(timeout)
    if not isinstance(message, ipc.Ready):
        child.kill()
        raise ChildDied(f"{child.role} sent {type(message).__name__} before it was ready")
    child.facts = message.facts


def exit_reason(code: int) -> str:
    """Say in words how a process ended (*code* as `Popen.returncode`; wrappers report 128+N for a signal)."""
    number = -code if code < 0 else code - 128 if code > 128 else 0  # noqa: PLR2004 - the shell's convention
    if number:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(number).name}"
    return f"exited with {code}"


def rebuild(fatal: ipc.Fatal | ipc.LoadFailed | ipc.ReleaseRefused | ipc.AttesterRefused) -> CasemateError:
    """Return the error a child reported, as the class that has its exit code."""
    if fatal.check:
        return UntrustedDataError(fatal.message, check=fatal.check, hint=fatal.hint)
    classes: list[type[CasemateError]] = [CasemateError]
    while classes:
        kind = classes.pop()
        if kind.code == fatal.code and kind not in {CasemateError, UntrustedDataError}:
            return kind(fatal.message, hint=fatal.hint)
        classes += kind.__subclasses__()
    return OperationError(fatal.message, hint=fatal.hint)


def link_pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends of a link between two children."""
    return channel.pair()
