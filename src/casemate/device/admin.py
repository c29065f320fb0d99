"""The agent's local sockets: only the device's own user or root may ask; questions of a connection come one by one.

What is for the vault, with its descriptors, is passed on; which of it is understood at all is each socket's union. Who
may ask was settled when it connected, so a command can connect as root and hand the connection to a process that is
nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from casemate.device.channel import AsyncChannel, Channel, ChannelClosed
from casemate.device.children import rebuild
from casemate.errors import CasemateError, NotFoundError, OperationError, UntrustedDataError
from casemate.formats import ipc

CONTROL_SOCKET: Final = "agent.sock"
UPDATE_SOCKET: Final = "update.sock"
LINKED_UPDATE_SOCKET: Final = "link/update.sock"
"""Where the update process asks: beside the control socket, or where units may look."""
_TIMEOUT: Final = 10.0
_IDLE: Final = 600.0
"""Seconds a connection may say nothing: an update fetches in between."""


class NoAnswerError(OperationError):
    """The device went away, or is stuck: what was asked may or may not have been done."""


class AdminServer:
    """Answers on a socket file: an `Ask` with what *answer* returns, the rest with what *vault* returns."""

    def __init__(
        self,
        path: Path,
        answer: Callable[[ipc.Ask], Awaitable[dict[str, Any]]],
        vault: Callable[[Any, Sequence[int]], Awaitable[ipc.FromVault]],
        *,
        union: Any = ipc.CommandToAgent,
        guest: int | None = None,
    ) -> None:
        """Listen at *path* once `start` is called, for what is in *union*; the uid *guest* may ask too."""
        self._union = union
        self._guest = guest
        self._path = path
        self._answer = answer
        self._vault = vault
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to answer; a stale socket file of a dead device is replaced (the caller holds the home's lock)."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        with short_path(self._path) as name:
            listener.bind(name)
        self._path.chmod(0o600 if self._guest is None else 0o666)  # the kernel says who calls
        listener.listen(16)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._on_connection)

    def _on_connection(self) -> None:
        assert self._listener
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            if not _is_trusted(sock, self._guest):
                sock.close()
                return
            self.admit(sock)

    def admit(self, sock: socket.socket) -> None:
        """Answer over *sock*, whose other end may ask."""
        task = asyncio.ensure_future(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        channel = AsyncChannel(sock, self._union)
        with contextlib.suppress(ChannelClosed, TimeoutError, UntrustedDataError):
            while True:
                question, fds = await asyncio.wait_for(channel.recv(), _IDLE)
                await channel.send(await self._reply(question, fds))
        channel.close()

    async def _reply(self, question: ipc.Message, fds: Sequence[int]) -> ipc.Answer | ipc.FromVault:
        try:
            if isinstance(question, ipc.Ask):
                return ipc.Answer(ok=True, data=await self._answer(question))
            return await self._vault(question, fds)
        except CasemateError as error:
            return ipc.Answer(ok=False, data=described(error))
        except (KeyError, TypeError):
            return ipc.Answer(ok=False, data={"message": "wrong arguments"})
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """Stop listening and remove the socket file."""
        if self._listener:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()


def _is_trusted(sock: socket.socket, guest: int | None = None) -> bool:
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in {0, os.geteuid(), guest}


@contextlib.contextmanager
def short_path(path: Path) -> Any:
    """Name a socket file through its directory's descriptor: paths over 107 bytes do not fit a socket address."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def described(error: CasemateError) -> dict[str, Any]:
    """Return what an answer says of *error*; `rebuilt` is the way back."""
    check = error.check if isinstance(error, UntrustedDataError) else ""
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
        "check": check,
    }


def connect(run: Path, name: str = CONTROL_SOCKET) -> socket.socket:
    """Return a connection to the device whose run directory is *run*; it keeps the rights of whoever made it.

    Raises:
        NotFoundError: no device runs there.

    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(_TIMEOUT)
    try:
        with short_path(run / name) as address:
            sock.connect(address)
    except OSError as error:
        sock.close()
        raise NotFoundError("no device is running on this home", hint="start it with `casemate up`") from error
    return sock


def ask(run: Path, verb: str, **args: Any) -> dict[str, Any]:
    """Ask the device whose run directory is *run*.

    Raises:
        NotFoundError: no device runs there.
        CasemateError: what it answered, or that it did not.

    """
    channel = Channel(connect(run), ipc.FromAgent)
    try:
        answer: dict[str, Any] = _printable(ask_over(channel, verb, args, _TIMEOUT))
        return answer
    finally:
        channel.close()


def ask_over(channel: Channel, verb: str, args: dict[str, Any], within: float) -> dict[str, Any]:
    """Ask over a connection that is there; the answer, not yet fit for a terminal, comes within *within* seconds.

    When it does not, nothing more is asked or answered over this connection.

    Raises:
        CasemateError: what the agent answered, or that it did not.

    """
    try:
        channel.send(ipc.Ask(verb=verb, args=args))
        reply, _ = channel.recv(within)
    except (ChannelClosed, TimeoutError, UntrustedDataError) as error:
        channel.give_up()
        raise NoAnswerError("the agent did not answer", hint="see `casemate status`") from error
    if not isinstance(reply, ipc.Answer):
        raise OperationError("the agent answered another question", hint="see `casemate status`")
    data: dict[str, Any] = reply.data
    if not reply.ok:
        raise rebuilt(_printable(data))
    return data


def rebuilt(data: dict[str, Any]) -> CasemateError:
    """Return the error that an answer describes, as the class that has its exit code."""
    told = ipc.Fatal(
        code=str(data.get("code", "failed")),
        message=str(data.get("message", "the agent refused")),
        hint=str(data.get("hint", "")),
        check=str(data.get("check", "")),
    )
    return rebuild(told)


def _printable(value: Any) -> Any:
    """Replace what steers a terminal: the answer comes from a process that reads hostile data, root may be reading."""
    if isinstance(value, str):
        return "".join(char if char.isprintable() else "?" for char in value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value
