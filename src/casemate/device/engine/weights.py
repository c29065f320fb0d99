"""The hand-over of a model: one frame, one descriptor, and proof that nobody can change what it holds."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import stat
from typing import Final

from casemate.device.channel import Channel, ChannelClosed
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import ipc
from casemate.formats.gguf import CheckedHeader, check_header

_F_GET_SEALS: Final = 1034
_REQUIRED_SEALS: Final = 0x2 | 0x4 | 0x8  # shrink, grow, write


def receive(supply: int, timeout: float) -> tuple[ipc.Weights, int]:
    """Wait on the descriptor *supply* for the vault; return its message and the sealed memory file.

    Raises:
        OperationError: nothing came within *timeout* seconds, or the vault is gone.
        UntrustedDataError: what came is not a sealed memory file of the stated size.

    """
    channel = Channel(socket.socket(fileno=supply), ipc.VaultToEngine)
    try:
        message, fds = channel.recv(timeout)
    except (ChannelClosed, TimeoutError) as error:
        raise OperationError("no model came from the vault", hint="`casemate journal show` says why") from error
    finally:
        channel.close()
    check_sealed(fds[0], message.bytes)
    return message, fds[0]


def check_sealed(fd: int, size: int) -> None:
    """Verify that *fd* is a memory file of *size* bytes which nobody, its maker included, can change any more.

    Raises:
        UntrustedDataError: it is not.

    """
    facts = os.fstat(fd)
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        seals = 0
    if not stat.S_ISREG(facts.st_mode) or seals & _REQUIRED_SEALS != _REQUIRED_SEALS:
        raise UntrustedDataError("the weights are not in a sealed memory file", check="engine-seals")
    if facts.st_size != size:
        raise UntrustedDataError("the weights are not as long as the vault says", check="engine-size")


def read_header(fd: int, size: int) -> CheckedHeader:
    """Check the header once more, with our own parser and inside the sandbox, and return what it says.

    Raises:
        UntrustedDataError: llama.cpp must not see this file.

    """
    return check_header(lambda offset, length: os.pread(fd, length, offset), size)


def may_lock(size: int) -> bool:
    """Return whether this process may keep *size* bytes out of swap."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return soft == resource.RLIM_INFINITY or soft >= size


def locked_bytes(status: int) -> int:
    """Return how much memory is locked, from a descriptor of /proc/self/status that was opened before the sandbox."""
    for line in os.pread(status, 8192, 0).splitlines():
        if line.startswith(b"VmLck:"):
            return int(line.split()[1]) * 1024
    return 0
