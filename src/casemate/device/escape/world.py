"""What the probes aim at on the host, and the observers who tell a real escape from something that looks like one.

Inside the sandbox a write to /tmp "works" (it is a private one) and a datagram "leaves" (to nowhere). So the places
where an effect would show are watched from here: sockets, files, a victim process, a terminal. Everything is made for
the test and taken away after it; the victim is our own child.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import os
import pty
import secrets
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import tty
from pathlib import Path
from typing import Any, Final, Self

from casemate.device.escape import files
from casemate.device.escape.memory import SECRET_MARK, SECRET_VARIABLE
from casemate.device.escape.probe import Targets, check, libc
from casemate.errors import OperationError

_F_ADD_SEALS: Final = 1033
_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8
_IPC_PRIVATE: Final = 0
_IPC_RMID: Final = 0
_IPC_CREAT_ALL: Final = 0o1666
_MNT_DETACH: Final = 2
_SECRET_LENGTH: Final = 32
_SYSFS_CANDIDATES: Final = ("/sys/power/state", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/profiling")

_VICTIM: Final = """
import ctypes, os, signal, sys
secret = sys.stdin.buffer.read(int(sys.argv[1]))
buffer = ctypes.create_string_buffer(secret, len(secret))
fd = os.memfd_create("victim")
os.write(fd, secret)
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"hit\\n"))
os.write(1, f"{ctypes.addressof(buffer)} {fd}\\n".encode())
while True:
    signal.pause()
"""


@dataclasses.dataclass(frozen=True)
class Round:
    """One pass over all probes: what they aim at, and the descriptors they are given."""

    targets: Targets
    fds: tuple[int, ...]


class World:
    """The targets, alive while the context is open."""

    def __init__(self) -> None:
        """Nothing exists before the context is entered."""
        self._stack = contextlib.ExitStack()
        self.secret = secrets.token_hex(_SECRET_LENGTH // 2)
        self.inherited = -1
        self._token = ""

    def __enter__(self) -> Self:
        """Set everything up; leave nothing behind when that fails half-way."""
        with contextlib.ExitStack() as stack:
            self._scratch = self._make_scratch(stack)
            self._make_listeners(stack)
            self._make_victim(stack)
            self._make_memory(stack)
            self._make_terminal(stack)
            os.environ[SECRET_VARIABLE] = self.secret
            stack.callback(os.environ.pop, SECRET_VARIABLE, None)
            self._handle, self._handle_type = self._make_handle()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Take everything away."""
        self._stack.close()

    # -- set-up, one target each

    def _make_scratch(self, stack: contextlib.ExitStack) -> Path:
        path = Path(tempfile.mkdtemp(prefix="casemate-probe-"))
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        path.chmod(0o755)
        mount = path / "mount"
        mount.mkdir()
        stack.callback(libc.umount2, bytes(mount), _MNT_DETACH)
        (path / "secret").write_text(self.secret, "ascii")
        (path / "inherited").write_text(SECRET_MARK + self.secret, "ascii")
        self.inherited = os.open(path / "inherited", os.O_RDONLY)
        stack.callback(os.close, self.inherited)
        return path

    def _make_listeners(self, stack: contextlib.ExitStack) -> None:
        self._abstract_name = f"casemate-probe-{secrets.token_hex(8)}"
        self._socket_path = str(self._scratch / "listener.sock")
        addresses: tuple[tuple[int, int, Any], ...] = (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, b"\0" + self._abstract_name.encode()),
            (socket.AF_UNIX, socket.SOCK_STREAM, self._socket_path),
        )
        self._listeners: list[socket.socket] = []
        for family, kind, address in addresses:
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(address)
            listener.setblocking(False)
            if kind == socket.SOCK_STREAM:
                listener.listen(8)
            self._listeners.append(listener)
        Path(self._socket_path).chmod(0o777)

    def _make_victim(self, stack: contextlib.ExitStack) -> None:
        victim = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _VICTIM, str(_SECRET_LENGTH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={SECRET_VARIABLE: self.secret},
        )
        stack.callback(_end, victim)
        if victim.stdin is None or victim.stdout is None:
            raise OperationError("no pipes")
        victim.stdin.write(self.secret.encode())
        victim.stdin.flush()
        told = victim.stdout.readline().split()
        if len(told) != 2:  # address and descriptor
            raise OperationError("the victim of the probes did not start")
        self._victim_address, self._victim_fd = int(told[0]), int(told[1])
        self._victim_pid = victim.pid
        self._hits = victim.stdout.fileno()
        os.set_blocking(self._hits, False)

    def _make_memory(self, stack: contextlib.ExitStack) -> None:
        self._open_weights, self._sealed_weights = (
            os.memfd_create("weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) for _ in range(2)
        )
        for fd in (self._open_weights, self._sealed_weights):
            stack.callback(os.close, fd)
            os.write(fd, b"GGUF")
        fcntl.fcntl(self._sealed_weights, _F_ADD_SEALS, _SEALS)
        self._segment = check(libc.shmget(_IPC_PRIVATE, ctypes.c_size_t(4096), _IPC_CREAT_ALL))
        stack.callback(libc.shmctl, self._segment, _IPC_RMID, None)
        address = check(libc.shmat(self._segment, None, 0))
        ctypes.memmove(address, self.secret.encode(), _SECRET_LENGTH)
        libc.shmdt(ctypes.c_void_p(address))

    def _make_terminal(self, stack: contextlib.ExitStack) -> None:
        master, self._terminal = pty.openpty()
        stack.callback(os.close, master)
        stack.callback(os.close, self._terminal)
        tty.setraw(self._terminal)

    def _make_handle(self) -> tuple[bytes, int]:
        try:
            return files.file_handle(str(self._scratch / "secret"))
        except OSError:
            return b"", 0

    # -- rounds

    def start_round(self, *, sealed: bool) -> Round:
        """Return fresh targets; what was seen before is forgotten. The weights are *sealed* as the vault seals them."""
        self.seen()
        self._token = secrets.token_hex(8)
        weights = self._sealed_weights if sealed else self._open_weights
        targets = Targets(
            token=self._token,
            tcp_port=self._listeners[0].getsockname()[1],
            udp_port=self._listeners[1].getsockname()[1],
            abstract_name=self._abstract_name,
            socket_path=self._socket_path,
            tmp_path=f"/tmp/casemate-probe-{self._token}",
            etc_path=f"/etc/casemate-probe-{self._token}",
            scratch=str(self._scratch),
            victim_pid=self._victim_pid,
            victim_address=self._victim_address,
            victim_length=_SECRET_LENGTH,
            victim_fd=self._victim_fd,
            handle=self._handle.hex(),
            handle_type=self._handle_type,
            handle_mount=str(self._scratch),
            segment=self._segment,
            queue=f"casemate-probe-{self._token}",
            block_devices=block_devices(),
            sysfs_file=next((path for path in _SYSFS_CANDIDATES if Path(path).exists()), ""),
            weights_fd=weights,
            terminal_fd=self._terminal,
        )
        return Round(targets, (weights, self._terminal))

    def seen(self) -> set[str]:
        """Return the probes whose effect of this round showed on the host, and clear it away."""
        found = {text.split()[0] for text in self._messages() if text.endswith(self._token) and self._token}
        for probe, directory in (("write_tmp", "/tmp"), ("write_etc", "/etc")):
            path = Path(directory, f"casemate-probe-{self._token}")
            if self._token and path.exists():
                path.unlink()
                found.add(probe)
        if _drain(self._hits):
            found.add("kill_victim")
        if struct.unpack("i", fcntl.ioctl(self._terminal, termios.FIONREAD, b"\0" * 4))[0]:
            termios.tcflush(self._terminal, termios.TCIFLUSH)
            found.add("tiocsti")
        return found

    def _messages(self) -> list[str]:
        texts = []
        for listener in self._listeners:
            while True:
                try:
                    if listener.type == socket.SOCK_DGRAM:
                        data = listener.recv(256)
                    else:
                        link, _ = listener.accept()
                        with link:
                            link.settimeout(1.0)
                            data = link.recv(256)
                except OSError:
                    break
                texts.append(data.decode("ascii", "replace"))
        return [text for text in texts if text]

    def expected(self, probe: str) -> str | None:
        """Return the evidence that only a real escape by *probe* can show; None when even we cannot know it."""
        own = {
            "read_shadow": lambda: files.digest("/etc/shadow"),
            "read_root_home": lambda: files.identity(files.ROOT_HOME),
            "list_host_dir": lambda: files.identity(files.LISTED_DIRECTORY),
            "inherited_fd": lambda: SECRET_MARK + self.secret,
        }
        try:
            return own.get(probe, lambda: self.secret)()
        except OSError:
            return None


def block_devices() -> tuple[str, ...]:
    """Return the device nodes of the host's disks, the one that holds / first."""
    root = Path("/").stat().st_dev
    names = (
        sorted(path.name for path in Path("/sys/class/block").iterdir()) if Path("/sys/class/block").is_dir() else []
    )
    nodes = [Path("/dev", name) for name in names]
    blocks = [node for node in nodes if node.exists() and stat.S_ISBLK(node.stat().st_mode)]
    blocks.sort(key=lambda node: node.stat().st_rdev != root)
    return tuple(str(node) for node in blocks[:8])


def _drain(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


def _end(victim: subprocess.Popen[bytes]) -> None:
    victim.kill()
    victim.wait()
    for pipe in (victim.stdin, victim.stdout):
        if pipe is not None:
            pipe.close()
