"""Probes that try to run new code, to change the weights, or to use what the parent left lying about."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
from typing import Final

from casemate.device.escape.probe import Probe, Targets, check, libc

SECRET_VARIABLE: Final = "CASEMATE_PROBE_SECRET"
SECRET_MARK: Final = "inherited:"
_PROT_READ_EXEC: Final = mmap.PROT_READ | mmap.PROT_EXEC
_MEMORY_FILE_EXEC: Final = 0x10  # MFD_EXEC, Linux 6.3

report_fd: list[int] = []


def _memfd(_: Targets) -> None:
    try:
        fd = os.memfd_create("code", os.MFD_CLOEXEC | _MEMORY_FILE_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("code", os.MFD_CLOEXEC)
    os.write(fd, b"#!/bin/true\n")
    os.close(fd)


def _map_wx(_: Targets) -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _protect_exec(_: Targets) -> None:
    page = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    check(libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), _PROT_READ_EXEC))


def _self_mem(_: Targets) -> None:
    """Write over code through /proc/self/mem, which ignores page protection (the same bytes: nothing changes)."""
    address = ctypes.cast(libc.getpid, ctypes.c_void_p).value or 0
    fd = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(fd, ctypes.string_at(address, 1), address)
    os.close(fd)


def _weights_write(targets: Targets) -> None:
    os.pwrite(targets.weights_fd, b"X", 0)


def _weights_reopen(targets: Targets) -> None:
    fd = os.open(f"/proc/self/fd/{targets.weights_fd}", os.O_RDWR)
    os.write(fd, b"X")


def _environment(_: Targets) -> str | None:
    if SECRET_VARIABLE not in os.environ:
        raise OSError(errno.ENOENT, "nothing in the environment")
    return os.environ[SECRET_VARIABLE]


def _inherited(_: Targets) -> str:
    for fd in range(3, 1024):
        with contextlib.suppress(OSError):
            content = os.pread(fd, 256, 0)
            if content.startswith(SECRET_MARK.encode()):
                return content.decode()
    raise OSError(errno.EBADF, "no descriptor of the parent")


def _exec_shell(_: Targets) -> None:
    """Become a shell; it tells on itself, because this process is gone then."""
    line = json.dumps({"id": "exec_sh", "outcome": "fired", "why": ""})
    os.dup2(report_fd[0], 1)
    os.execv("/bin/sh", ["sh", "-c", f"echo '{line}'"])


PROBES: Final = (
    Probe("memfd_exec", "make a memory file for code", "S", _memfd),
    Probe("mmap_wx", "map writable and executable memory", "S", _map_wx),
    Probe("mprotect_exec", "make data executable", "S", _protect_exec),
    Probe("self_mem_write", "write over its own code through /proc", "L S", _self_mem),
    Probe("weights_write", "change the loaded weights", "seals", _weights_write),
    Probe("weights_reopen", "open the weights again to write", "seals S", _weights_reopen),
    Probe("environ_secret", "find a secret in the environment", "B", _environment, proof="secret"),
    Probe("inherited_fd", "use a descriptor the parent had open", "spawn", _inherited, proof="secret"),
    Probe("exec_sh", "run /bin/sh", "L S", _exec_shell),
)
