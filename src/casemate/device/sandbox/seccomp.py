"""The two system-call filters of the engine, and a small ctypes binding to libseccomp that loads them.

Both are allow-lists that answer everything else with EPERM. LOAD is in force while llama.cpp opens the model: it may
still read files (Landlock decides which: none) and make one AF_UNIX listener that its library insists on. RUN follows
before the first request: no `openat`, no `socket`, no way to make a process or executable memory. A filter can only be
narrowed, so RUN is laid over LOAD and the kernel takes the stricter answer of the two.

Names that an architecture does not have (arm64 has no `stat`, no `poll`) are skipped when the filter is built.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
from typing import Final

from casemate.errors import HostError, OperationError

LIBRARY: Final = "libseccomp.so.2"

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000
_ATTR_BADARCH: Final = 2
_ATTR_NNP: Final = 3
_ATTR_TSYNC: Final = 4
_EQUAL: Final = 4
_MASKED_EQUAL: Final = 7
_NO_SUCH_CALL: Final = -1

_PROT_EXEC: Final = 0x4
_CLONE_THREAD: Final = 0x00010000
_AF_UNIX: Final = 1
_FIONBIO: Final = 0x5421
_PRCTL_OPTIONS: Final = (15, 38, 0x53564D41)  # PR_SET_NAME, PR_SET_NO_NEW_PRIVS (for the next filter), PR_SET_VMA


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


@dataclasses.dataclass(frozen=True)
class Rule:
    """One allowed call; with *argument*, only while `args[argument] & mask == value`."""

    name: str
    argument: int | None = None
    mask: int = 0xFFFF_FFFF_FFFF_FFFF
    value: int = 0


def _plain(names: str) -> tuple[Rule, ...]:
    return tuple(Rule(name) for name in names.split())


_GUARDED: Final = (
    Rule("mmap", 2, _PROT_EXEC, 0),  # no executable memory: injected code has nowhere to live
    Rule("mprotect", 2, _PROT_EXEC, 0),
    Rule("clone", 0, _CLONE_THREAD, _CLONE_THREAD),  # threads, never processes
)

RUN: Final = (
    *_plain(
        "read write readv writev close lseek munmap mremap madvise brk futex rseq set_robust_list rt_sigprocmask "
        "rt_sigreturn sigaltstack sched_yield getpid gettid getrandom clock_gettime clock_nanosleep nanosleep exit "
        "exit_group fstat newfstatat access poll ppoll recvfrom sendto recvmsg sendmsg restart_syscall tgkill fcntl "
        "accept4"
    ),
    Rule("ioctl", 1, 0xFFFF_FFFF, _FIONBIO),  # `settimeout`; the argument is an unsigned int
    *_GUARDED,
)

LOAD: Final = (
    *_plain(
        "seccomp read write readv writev pread64 close lseek munmap mremap madvise fadvise64 brk futex rseq "
        "set_robust_list rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack sched_yield sched_getaffinity "
        "sched_setaffinity sched_setscheduler sched_getparam sched_getscheduler getpid gettid getrandom clock_gettime "
        "clock_nanosleep nanosleep exit exit_group fstat newfstatat statx stat lstat openat readlink readlinkat getcwd "
        "getdents64 ioctl fcntl prlimit64 sysinfo access faccessat faccessat2 poll ppoll epoll_wait epoll_pwait "
        "epoll_ctl recvfrom sendto recvmsg sendmsg restart_syscall mlock munlock tgkill uname getuid geteuid getgid "
        "getegid dup"
    ),
    *(Rule("prctl", 0, 0xFFFF_FFFF, option) for option in _PRCTL_OPTIONS),
    # the listener that llama.cpp's server always opens: local, unconnected, gone behind RUN
    Rule("socket", 0, 0xFFFF_FFFF, _AF_UNIX),
    *_plain("bind listen accept4 shutdown setsockopt getsockname unlink unlinkat"),
    *_GUARDED,
)


def library() -> ctypes.CDLL:
    """Load libseccomp.

    Raises:
        HostError: it is not installed.

    """
    try:
        lib = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as error:
        raise HostError("libseccomp is missing", hint="apt install libseccomp2") from error
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_release.argtypes = [ctypes.c_void_p]
    lib.seccomp_load.argtypes = [ctypes.c_void_p]
    lib.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    lib.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    ]
    lib.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    return lib


class Filter:
    """A filter under construction; `load` puts it in force for every thread of this process."""

    def __init__(self, lib: ctypes.CDLL, *, default: int = _ERRNO | errno.EPERM) -> None:
        """Start empty: everything gets *default*, and calls of a foreign ABI (i386, x32) kill the process."""
        self._lib = lib
        self._context = lib.seccomp_init(default)
        if not self._context:
            raise OperationError("libseccomp could not make a filter")
        for attribute, value in ((_ATTR_BADARCH, _KILL_PROCESS), (_ATTR_NNP, 1), (_ATTR_TSYNC, 1)):
            self._check(lib.seccomp_attr_set(self._context, attribute, value), "attribute")
        self.skipped: list[str] = []

    def _check(self, result: int, what: str) -> None:
        if result != 0:
            raise OperationError(f"seccomp {what}: {os.strerror(-result)}")

    def _resolve(self, name: str) -> int | None:
        number = int(self._lib.seccomp_syscall_resolve_name(name.encode()))
        if number < 0:  # -1 unknown; below that a name of some other architecture
            self.skipped.append(name)
            return None
        return number

    def allow(self, rule: Rule) -> None:
        """Add *rule*; a name this architecture lacks is noted in `skipped` and left out."""
        number = self._resolve(rule.name)
        if number is None:
            return
        compare = None
        count = 0
        if rule.argument is not None:
            compare = (_Compare * 1)(_Compare(rule.argument, _MASKED_EQUAL, rule.mask, rule.value))
            count = 1
        self._check(self._lib.seccomp_rule_add_array(self._context, _ALLOW, number, count, compare), rule.name)

    def answer(self, name: str, error: int) -> None:
        """Answer the call *name* with errno *error* instead of the default."""
        number = self._resolve(name)
        if number is not None:
            self._check(self._lib.seccomp_rule_add_array(self._context, _ERRNO | error, number, 0, None), name)

    def load(self) -> None:
        """Put the filter in force, on all threads or on none, and forget the construction."""
        try:
            self._check(self._lib.seccomp_load(self._context), "load")
        finally:
            self._lib.seccomp_release(self._context)
            self._context = None


def build(rules: tuple[Rule, ...]) -> Filter:
    """Make a filter that allows *rules* and nothing else; `load` puts it in force.

    Raises:
        HostError: libseccomp is not installed.
        OperationError: it refused a rule.

    """
    made = Filter(library())
    for rule in rules:
        made.allow(rule)
    made.answer("clone3", errno.ENOSYS)  # its flags hide behind a pointer: glibc falls back to clone, which we can read
    return made
