"""The agent's side of a child process: start it, watch it die, keep its link, prove that it still answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from casemate.device import channel
from casemate.device.channel import AsyncChannel, ChannelClosed
from casemate.device.home import Owner
from casemate.device.process import CONTROL_FD_VARIABLE
from casemate.errors import CasemateError, HostError, OperationError, UntrustedDataError
from casemate.formats import ipc

HELLO_TIMEOUT: Final = 60.0
PING_EVERY: Final = 2.0
PONG_WITHIN: Final = 20.0

Launcher = Callable[[Sequence[int]], subprocess.Popen[bytes]]
"""Starts the program with these descriptors inherited (the control link is the first) and returns it."""


class ChildDied(Exception):  # noqa: N818 - an event the supervisor decides about
    """The process is gone; `transient` says whether a restart may help."""

    def __init__(self, reason: str, *, transient: bool = True, error: CasemateError | None = None) -> None:
        """Keep why, and the error the child reported, if it could."""
        super().__init__(reason)
        self.reason = reason
        self.transient = transient
        self.error = error


def python_launcher(role: str, environment: Mapping[str, str]) -> Launcher:
    """Return a launcher for `python -m casemate.device.<role>` with a small environment and its own process group."""

    def launch(fds: Sequence[int]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", f"casemate.device.{role}"],
            env={**environment, CONTROL_FD_VARIABLE: str(fds[0]), "CASEMATE_PARENT": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            pass_fds=tuple(fds),
            process_group=0,
        )

    return launch


def child_environment() -> dict[str, str]:
    """Return what a child may inherit: no secret, no proxy, no Python switch but those named here."""
    kept = ("PATH", "LANG", "LC_ALL", "TZ", "COVERAGE_PROCESS_START")
    return {"PYTHONUNBUFFERED": "1", **{name: os.environ[name] for name in kept if name in os.environ}}


class ChildProcess:
    """A running child and its control link."""

    def __init__(self, role: str, popen: subprocess.Popen[bytes], link: AsyncChannel) -> None:
        """Watch *popen*, which speaks over *link*; use `start_child`."""
        self.role = role
        self.popen = popen
        self.link = link
        self.facts: dict[str, Any] = {}
        self.fatal: ipc.Fatal | None = None
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._pings = 0
        self._last_pong = self._loop.time()

    @property
    def pid(self) -> int:
        """Return the process id as the agent sees it."""
        return self.popen.pid

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self.popen.wait()
        if not self.exited.done():
            self.exited.set_result(code)

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
        return ChildDied(f"{self.role} {exit_reason(self.exited.result())}")

    def ponged(self, message: ipc.Pong) -> None:
        """Note an answer to a ping."""
        del message
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
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

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
    owner: Owner | None,
    settings: Mapping[str, Any],
    fds: Mapping[str, int],
    inherited: Sequence[int] = (),
) -> ChildProcess:
    """Start a child and hand it its `Start`; returns before it is ready.

    *fds* travel with `Start` under their names; *inherited* are passed at launch, for a child that cannot receive
    (they and the ends given to the child are closed here when it has them).

    Raises:
        ChildDied: it did not say hello.
        HostError: the program cannot be started.

    """
    ours, theirs = channel.pair()
    try:
        popen = launch([theirs.fileno(), *inherited])
    except OSError as error:
        ours.close()
        raise HostError(f"cannot start {role}: {error}", hint="run `casemate doctor`") from error
    finally:
        theirs.close()
    child = ChildProcess(role, popen, AsyncChannel(ours, ipc.ChildToAgent))
    hello, _ = await child.recv(HELLO_TIMEOUT)
    if not isinstance(hello, ipc.Hello) or hello.role != role:
        child.kill()
        raise ChildDied(f"{role} did not introduce itself")
    ids: dict[str, Any] = {"uid": owner.uid, "gid": owner.gid} if owner else {}
    await child.link.send(ipc.Start(home=home, fds=tuple(fds), settings=dict(settings), **ids), list(fds.values()))
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


def rebuild(fatal: ipc.Fatal | ipc.LoadFailed) -> CasemateError:
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
