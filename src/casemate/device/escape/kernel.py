"""Probes that try the kernel's rarely needed doors, where most of its holes have been."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
from pathlib import Path
from typing import Final

from casemate.device.escape.probe import Gate, NotTestableError, Probe, Targets, check, libc, syscall

_KEYCTL_GET_KEYRING_ID: Final = 0
_SESSION_KEYRING: Final = -3
_PROCESS_KEYRING: Final = -2
_BPF_MAP_CREATE: Final = 0
_PERF_TYPE_SOFTWARE: Final = 1
_PERF_ATTRIBUTE_SIZE: Final = 112
_UFFD_USER_MODE_ONLY: Final = 1
_SYSLOG_READ_ALL: Final = 3
_READ_IMPLIES_EXEC: Final = 0x0400000
_X32_GETPID: Final = 0x40000000 | 39
_MNT_DETACH: Final = 2
_O_CREAT_RDWR: Final = os.O_CREAT | os.O_RDWR


def _mount(targets: Targets) -> None:
    point = Path(targets.scratch, "mount")
    check(libc.mount(b"none", bytes(point), b"tmpfs", 0, None))
    libc.umount2(bytes(point), _MNT_DETACH)


def _keyctl(_: Targets) -> None:
    syscall("keyctl", _KEYCTL_GET_KEYRING_ID, _SESSION_KEYRING, 1, 0, 0)


def _add_key(targets: Targets) -> None:
    syscall("add_key", b"user", targets.token.encode(), b"x", 1, _PROCESS_KEYRING)


def _bpf(_: Targets) -> None:
    attribute = (ctypes.c_uint32 * 32)(2, 4, 8, 1)  # an array of one 8-byte value
    os.close(syscall("bpf", _BPF_MAP_CREATE, ctypes.byref(attribute), ctypes.sizeof(attribute)))


def _io_uring(_: Targets) -> None:
    os.close(syscall("io_uring_setup", 4, ctypes.byref((ctypes.c_ubyte * 120)())))


def _perf(_: Targets) -> None:
    attribute = (ctypes.c_uint32 * (_PERF_ATTRIBUTE_SIZE // 4))(_PERF_TYPE_SOFTWARE, _PERF_ATTRIBUTE_SIZE)
    os.close(syscall("perf_event_open", ctypes.byref(attribute), 0, -1, -1, 0))


def _userfaultfd(_: Targets) -> None:
    os.close(syscall("userfaultfd", os.O_CLOEXEC | _UFFD_USER_MODE_ONLY))


def _past_permission(call: str, *arguments: object) -> None:
    """Make a *call* whose arguments are bad: the kernel complaining about them means that it would have done it."""
    try:
        syscall(call, *arguments)
    except OSError as error:
        if error.errno not in {errno.EFAULT, errno.EINVAL, errno.ENOEXEC}:
            raise


def _kexec(_: Targets) -> None:
    _past_permission("kexec_load", 0, 1, None, 0)


def _module(_: Targets) -> None:
    _past_permission("init_module", None, 0, b"")


def _kernel_log(_: Targets) -> None:
    check(libc.klogctl(_SYSLOG_READ_ALL, ctypes.create_string_buffer(4096), 4096))


def _hostname(_: Targets) -> None:
    socket.sethostname(socket.gethostname())


def _message_queue(targets: Targets) -> None:
    name = targets.queue.encode()
    attributes = (ctypes.c_long * 8)(0, 1, 8)
    os.close(syscall("mq_open", name, _O_CREAT_RDWR, 0o600, ctypes.byref(attributes)))
    syscall("mq_unlink", name)


def _shared_memory(targets: Targets) -> str:
    address = check(libc.shmat(targets.segment, None, 0o10000))
    return ctypes.string_at(address).decode()


def _personality(_: Targets) -> None:
    before = check(libc.personality(ctypes.c_ulong(0xFFFFFFFF)))
    check(libc.personality(ctypes.c_ulong(before | _READ_IMPLIES_EXEC)))
    libc.personality(ctypes.c_ulong(before))


def _x32(_: Targets) -> None:
    _need_x86()
    check(libc.syscall(ctypes.c_long(_X32_GETPID)))


_CODE: Final = bytes.fromhex("b814000000cd80c3")  # mov eax, 20 (getpid); int 0x80; ret
_gadget: list[int] = []


def prepare_gadget() -> None:
    """Put a 32-bit system call where the probe can jump to it: real libraries hold such bytes by accident."""
    if platform.machine() == "x86_64":
        page = check(libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0)))
        ctypes.memmove(page, _CODE, len(_CODE))
        _gadget.append(page)


def _i386(_: Targets) -> None:
    _need_x86()
    if ctypes.CFUNCTYPE(ctypes.c_int)(_gadget[0])() < 0:
        raise OSError(errno.ENOSYS, "no 32-bit calls")


def _need_x86() -> None:
    if platform.machine() != "x86_64":
        raise NotTestableError("only x86-64 has this second way in")


PROBES: Final = (
    Probe("mount_tmpfs", "mount a file system", "U B L S", _mount, needs=("CAP_SYS_ADMIN",)),
    Probe("keyctl", "reach the session keyring", "S", _keyctl),
    Probe("add_key", "add a key to a keyring", "S", _add_key),
    Probe(
        "bpf",
        "make a BPF map",
        "U B S",
        _bpf,
        needs=("CAP_SYS_ADMIN",),
    ),
    Probe("io_uring_setup", "make an io_uring", "S", _io_uring, gates=(Gate("kernel/io_uring_disabled", ("1", "2")),)),
    Probe(
        "perf_event_open",
        "open a performance counter",
        "U B S",
        _perf,
        gates=(Gate("kernel/perf_event_paranoid", ("2", "3", "4")),),
    ),
    Probe("userfaultfd", "make a userfaultfd", "S", _userfaultfd),
    Probe("kexec_load", "load another kernel", "U B S", _kexec, needs=("CAP_SYS_BOOT",)),
    Probe("init_module", "load a kernel module", "U B S", _module, needs=("CAP_SYS_MODULE",)),
    Probe(
        "kernel_log",
        "read the kernel's log",
        "S",
        _kernel_log,
        gates=(Gate("kernel/dmesg_restrict", ("1",)),),
    ),
    Probe("sethostname", "set the host's name", "U B S", _hostname, needs=("CAP_SYS_ADMIN",)),
    Probe("mq_open", "make a message queue", "L S", _message_queue),
    Probe("shm_host", "attach shared memory of the host", "U B S", _shared_memory, proof="secret"),
    Probe("personality", "make readable memory executable", "S", _personality),
    Probe("x32_syscall", "use the x32 call table", "S", _x32),
    Probe("i386_syscall", "use the 32-bit call table (int 0x80)", "S", _i386, fatal_means_absent=True),
)
