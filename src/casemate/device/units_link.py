"""The agent's side of processes that are units of their own: a socket they join over, and the leash they are held by.

The service manager starts every process; it offers itself here (`device.attach`) and waits. The agent takes it when
its own restart policy wants one, so back-off and triage are decided in one place. Who offers what is told by the
kernel: the peer's uid says its role, and a process of any other uid is cut off before it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import pwd
import socket
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from casemate.device import channel
from casemate.device.admin import short_path
from casemate.device.attach import LEASH
from casemate.device.channel import Channel, ChannelClosed
from casemate.device.children import ChildDied, Launcher, Process
from casemate.device.fleet.fencing import ask_for_fence
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import ipc

JOIN_WITHIN: Final = 10.0
TAKE_WITHIN: Final = 60.0
_YOUNG: Final = frozenset({"link", "attester"})
"""Roles that an older installation made no user for: a device that needs none of them runs without."""
_JOIN_LIMIT: Final = 1024
_MAX_HANDSHAKES: Final = 32
_GONE_WITHIN: Final = 2.0
_CREDENTIALS: Final = struct.Struct("3i")

_Offer = tuple[str, str]  # role, model


class LinkServer:
    """Listens for processes that offer themselves, and keeps the newest of each kind until it is taken."""

    def __init__(self, path: Path, uids: Mapping[str, int], models: Collection[str]) -> None:
        """Listen at *path* once `start` is called; *uids* says which uid each role has, *models* which are served."""
        self._path = path
        self._roles = {uid: role for role, uid in uids.items()}
        self._models = models
        self._waiting: dict[_Offer, tuple[socket.socket, int]] = {}
        self._news = asyncio.Event()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self.refused = 0

    def start(self) -> None:
        """Begin to listen. Any user may connect; only the uids of roles are heard."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        with short_path(self._path) as name:
            listener.bind(name)
        self._path.chmod(0o666)
        listener.listen(_MAX_HANDSHAKES)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._on_connection)

    def _on_connection(self) -> None:
        assert self._listener
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            role = self._roles.get(uid)
            if role is None or len(self._handshakes) >= _MAX_HANDSHAKES:
                self._refuse(sock)
                return
            task = asyncio.ensure_future(self._handshake(sock, role, pid))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _refuse(self, sock: socket.socket) -> None:
        self.refused += 1
        sock.close()

    async def _handshake(self, sock: socket.socket, role: str, pid: int) -> None:
        """Read the one message a peer may send, and park it; a second offer of the same kind replaces the first."""
        try:
            offer = await asyncio.wait_for(_read_join(sock), JOIN_WITHIN)
        except (TimeoutError, OSError, UntrustedDataError):
            self._refuse(sock)
            return
        except asyncio.CancelledError:
            sock.close()
            raise
        if offer.role != role or offer.model not in (self._models if role == "engine" else {""}):
            self._refuse(sock)
            return
        older = self._waiting.pop((role, offer.model), None)
        if older:
            older[0].close()
        self._waiting[role, offer.model] = (sock, pid)
        self._news.set()

    async def take(self, role: str, model: str, fds: Mapping[str, int]) -> tuple[Process, socket.socket]:
        """Wait for a process that offers itself as *role* (of *model*), give it *fds* by name, return it.

        Raises:
            ChildDied: none came within `TAKE_WITHIN` seconds.

        """
        unit = f"casemate-{role}@{model}" if model else f"casemate-{role}"
        deadline = asyncio.get_running_loop().time() + TAKE_WITHIN
        while True:
            self._news.clear()
            offered = self._waiting.pop((role, model), None)
            if offered:
                taken = _bind(*offered, unit, fds)
                if taken:
                    return taken
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                raise ChildDied(f"{unit} did not come: see `systemctl status {unit}`") from None

    def close(self) -> None:
        """Stop listening and send everyone away."""
        if self._listener:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        for task in self._handshakes:
            task.cancel()
        for sock, _ in self._waiting.values():
            sock.close()
        self._waiting.clear()


async def _read_join(sock: socket.socket) -> ipc.Join:
    reader = ipc.FrameReader(ipc.ToLink, limit=_JOIN_LIMIT)
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(sock, _JOIN_LIMIT)
        messages = reader.feed(data)
        if not data or len(messages) > 1 or (messages and reader.pending):
            raise UntrustedDataError("a peer did not offer itself as it should", check="link-join")
        if messages:
            offer: ipc.Join = messages[0]
            return offer


def _bind(sock: socket.socket, pid: int, unit: str, fds: Mapping[str, int]) -> tuple[Process, socket.socket] | None:
    """Put a parked process on a leash and tell it to go on; None when it has gone away meanwhile."""
    ours, theirs = channel.pair()
    with theirs:
        try:
            Channel(sock, ipc.ToLink).send(ipc.Joined(fds=(LEASH, *fds)), [theirs.fileno(), *fds.values()])
        except (ChannelClosed, OSError):
            ours.close()
            sock.close()
            return None
    return LinkedProcess(pid, ours, unit), sock


class LinkedProcess:
    """A process of another uid: it ends when its leash says so, and is killed by pulling it."""

    def __init__(self, pid: int, leash: socket.socket, unit: str) -> None:
        """Hold *leash*; *unit* is named in reasons."""
        self.pid = pid
        self._leash = leash
        self._unit = unit
        self._ended: Callable[[str], None] | None = None

    def watch(self, ended: Callable[[str], None]) -> None:
        """Wait for the other end to close: the kernel does that when the process is gone."""
        self._leash.setblocking(False)
        self._ended = ended
        asyncio.get_running_loop().add_reader(self._leash.fileno(), self._on_leash)

    def _on_leash(self) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                data = self._leash.recv(1)
            except ConnectionError:
                data = b""
            if data:
                self.kill()  # nothing is ever said on a leash
            else:
                self._end(f"ended; `journalctl -u {self._unit}` has the reason")

    def _end(self, reason: str) -> None:
        if self._leash.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._leash.fileno())
            self._leash.close()
            if self._ended:
                self._ended(reason)

    def kill(self) -> None:
        """Pull the leash. A process that slipped it is given up: its links are closed, and its unit has limits."""
        if self._leash.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._leash.send(b"\0")
        asyncio.get_running_loop().call_later(_GONE_WITHIN, self._end, "did not let itself be killed")


class UnitLaunchers:
    """Processes that the service manager starts (`device.launch.Launchers`)."""

    beside = False  # one unit per model

    def __init__(self, server: LinkServer, fleet: Path) -> None:
        """Take them from *server*; *fleet* is the home's directory of orders."""
        self._server = server
        self._fleet = fleet

    async def fence(self, gate: bytes) -> str:
        """Leave what is wanted where the unit that may change the network looks for it, and wait until it says so."""
        return await ask_for_fence(self._fleet, gate)

    async def shred_keyfile(self) -> bool:
        """Leave it to the root step before the next start: no unit of ours can write where it lies."""
        return False

    def core(self, role: str) -> Launcher:
        """Take the unit of *role*."""

        async def launch(inherited: Sequence[int]) -> tuple[Process, socket.socket]:
            assert not inherited
            return await self._server.take(role, "", {})

        return launch

    def engine(self, model: str, *, replay: bool) -> Launcher:
        """Take the unit of *model*'s engine.

        Raises:
            OperationError: recorded streams have no unit.

        """
        if replay:
            raise OperationError("a recorded stream cannot be served by a unit", hint="use `casemate up --replay`")

        async def launch(inherited: Sequence[int]) -> tuple[Process, socket.socket]:
            return await self._server.take("engine", model, dict(zip(("gateway", "supply"), inherited, strict=True)))

        return launch


def role_uids() -> dict[str, int]:
    """Return the uid of each role that joins: that of the system user `casemate-<role>`.

    Raises:
        OperationError: a user is missing.

    """
    found = {}
    for role in ("journal", "vault", "gateway", "engine", "link", "update", "attester"):
        name = f"casemate-{role}"
        try:
            found[role] = pwd.getpwnam(name).pw_uid
        except KeyError:
            if role in _YOUNG:
                continue
            raise OperationError(f"no system user {name}", hint="run `casemate service install`") from None
    return found
