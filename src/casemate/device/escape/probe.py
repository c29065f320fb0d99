"""What a probe is, what it may aim at, and the raw system calls it is written in."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
from collections.abc import Callable
from typing import Final, Literal

from casemate.device.sandbox import seccomp

Proof = Literal["claim", "secret", "outside"]


@dataclasses.dataclass(frozen=True)
class Targets:
    """Everything a probe attacks; made by `world.World` outside and sent to the probing process as JSON."""

    token: str  # what to leave behind, different in every round
    tcp_port: int
    udp_port: int
    abstract_name: str
    socket_path: str
    tmp_path: str
    etc_path: str
    scratch: str  # a directory of ours on the host
    victim_pid: int
    victim_address: int
    victim_length: int
    victim_fd: int
    handle: str  # a file handle, hexadecimal; empty where the file system has none
    handle_type: int
    handle_mount: str
    segment: int  # System V shared memory id
    queue: str  # POSIX message queue name
    block_devices: tuple[str, ...]
    sysfs_file: str
    weights_fd: int
    terminal_fd: int


@dataclasses.dataclass(frozen=True)
class Gate:
    """A switch of the host: while */proc/sys/name* holds one of *closed*, an ordinary user cannot do this anyway."""

    name: str
    closed: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Probe:
    """One attempt to get out.

    *attempt* returns when it worked (with evidence, when `proof` is "secret") and raises OSError when it was stopped.
    *layer* names what should stop it: U own uid, B bubblewrap, L Landlock, S seccomp, or words. *needs* are the
    capabilities without which even an open host refuses; *absent* the errors that mean the host has no such thing.
    """

    id: str
    tries: str
    layer: str
    attempt: Callable[[Targets], str | None]
    proof: Proof = "claim"
    needs: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    absent: tuple[int, ...] = ()
    fatal_means_absent: bool = False


class NotTestableError(Exception):
    """The host has nothing to aim at."""


CAPABILITIES: Final = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SETGID": 6,
    "CAP_NET_RAW": 13,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_BOOT": 22,
    "CAP_MKNOD": 27,
    "CAP_SYSLOG": 34,
}

ALWAYS_ABSENT: Final = frozenset(
    {errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP}
)

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.shmat.restype = ctypes.c_void_p
_names: Final = seccomp.library()


def check(result: int | None) -> int:
    """Return *result* of a libc call, or raise its errno."""
    if result is None or result in {-1, ctypes.c_void_p(-1).value}:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(name: str, *arguments: object) -> int:
    """Make the call *name* whatever its number is on this architecture."""
    number = int(_names.seccomp_syscall_resolve_name(name.encode()))
    if number < 0:
        raise OSError(errno.ENOSYS, f"no {name} on this architecture")
    return check(libc.syscall(ctypes.c_long(number), *(_long(argument) for argument in arguments)))


def _long(argument: object) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument
