"""Probes that try to reach other processes, to make new ones, or to gain rights."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import termios
from pathlib import Path
from typing import Final

from casemate.device.escape.probe import Gate, Probe, Targets, check, libc, syscall

_PTRACE_ATTACH: Final = 16
_PTRACE_DETACH: Final = 17
_CLONE_NEWUSER: Final = 0x1000_0000
_CLONE_NEWNET: Final = 0x4000_0000
_PR_SET_DUMPABLE: Final = 4
_FORKS: Final = 200
_RAISED_CORE: Final = 1 << 20

YAMA: Final = Gate("kernel/yama/ptrace_scope", ("1", "2", "3"))
USERNS: Final = (
    Gate("kernel/unprivileged_userns_clone", ("0",)),
    Gate("user/max_user_namespaces", ("0",)),
    Gate("kernel/apparmor_restrict_unprivileged_userns", ("1",)),
)


def _ptrace(targets: Targets) -> None:
    check(libc.ptrace(_PTRACE_ATTACH, targets.victim_pid, None, None))
    os.waitpid(targets.victim_pid, 0)
    check(libc.ptrace(_PTRACE_DETACH, targets.victim_pid, None, None))


def _proc_mem(targets: Targets) -> str:
    fd = os.open(f"/proc/{targets.victim_pid}/mem", os.O_RDONLY)
    return os.pread(fd, targets.victim_length, targets.victim_address).decode()


def _proc_environ(targets: Targets) -> str:
    content = Path(f"/proc/{targets.victim_pid}/environ").read_bytes()
    return content.decode().partition("=")[2].rstrip("\0")


class _Piece(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _vm_readv(targets: Targets) -> str:
    buffer = ctypes.create_string_buffer(targets.victim_length)
    here = _Piece(ctypes.addressof(buffer), targets.victim_length)
    there = _Piece(targets.victim_address, targets.victim_length)
    check(libc.process_vm_readv(targets.victim_pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))
    return buffer.raw.decode()


def _kill(targets: Targets) -> None:
    os.kill(targets.victim_pid, signal.SIGUSR1)


def _pidfd(targets: Targets) -> None:
    os.close(os.pidfd_open(targets.victim_pid))


def _pidfd_getfd(targets: Targets) -> str:
    stolen = syscall("pidfd_getfd", os.pidfd_open(targets.victim_pid), targets.victim_fd, 0)
    return os.pread(stolen, 256, 0).decode()


def _new_userns(_: Targets) -> None:
    check(libc.unshare(_CLONE_NEWUSER))


class _CloneArguments(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls")
    )


def _clone3(_: Targets) -> None:
    arguments = _CloneArguments(flags=_CLONE_NEWUSER, exit_signal=signal.SIGCHLD)
    child = syscall("clone3", ctypes.byref(arguments), ctypes.sizeof(arguments))
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _setns(_: Targets) -> None:
    check(libc.setns(os.open("/proc/self/ns/net", os.O_RDONLY), _CLONE_NEWNET))


def _fork(_: Targets) -> None:
    """Make up to 200 children; one is enough to count, none outlives the probe."""
    children: list[int] = []
    held, release = os.pipe()
    try:
        for _index in range(_FORKS):
            child = os.fork()
            if child == 0:
                os.close(release)
                os.read(held, 1)
                os._exit(0)
            children.append(child)
    except OSError:
        if not children:
            raise
    finally:
        os.close(release)
        for child in children:
            os.waitpid(child, 0)


def _setgroups(_: Targets) -> None:
    os.setgroups([0])


def _core_limit(_: Targets) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (_RAISED_CORE, _RAISED_CORE))
    except ValueError:  # what Python makes of EPERM here
        raise OSError(errno.EPERM, "the hard limit holds") from None


def _dumpable(_: Targets) -> None:
    check(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


def _type_ahead(targets: Targets) -> None:
    for character in b"id\n":
        fcntl.ioctl(targets.terminal_fd, termios.TIOCSTI, bytes([character]))


PROBES: Final = (
    Probe("ptrace_attach", "trace a process of the host", "U B L S", _ptrace, gates=(YAMA,)),
    Probe("proc_mem_victim", "read a process's memory file", "U B L", _proc_mem, proof="secret", gates=(YAMA,)),
    Probe("proc_environ", "read a process's environment", "U B L", _proc_environ, proof="secret"),
    Probe("process_vm_readv", "read a process's memory by call", "U B S", _vm_readv, proof="secret", gates=(YAMA,)),
    Probe("kill_victim", "signal a process of the host", "U B L S", _kill, proof="outside"),
    Probe("pidfd_open_victim", "open a descriptor of a process", "B S", _pidfd),
    Probe("pidfd_getfd", "take a descriptor out of a process", "U B S", _pidfd_getfd, proof="secret", gates=(YAMA,)),
    Probe("new_userns", "make a user namespace (unshare)", "B S", _new_userns, gates=USERNS),
    Probe("clone3_userns", "make a process in a new user namespace (clone3)", "B S", _clone3, gates=USERNS),
    Probe("setns", "join a namespace", "U B L S", _setns, needs=("CAP_SYS_ADMIN",)),
    Probe("fork_200", "make 200 processes", "S", _fork),
    Probe("caps", "use a privilege: take another group", "U B S", _setgroups, needs=("CAP_SETGID",)),
    Probe("setrlimit_core", "allow core dumps again", "limit S", _core_limit),
    Probe("prctl_dumpable", "make the process dumpable again", "S", _dumpable),
    Probe("tiocsti", "type into a terminal", "U B S", _type_ahead, proof="outside", needs=("CAP_SYS_ADMIN",)),
)
