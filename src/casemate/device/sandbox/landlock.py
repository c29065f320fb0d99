"""Landlock: from here on this thread and all it starts can reach no file but those under a few given directories.

An empty list still lets the process reopen its own memory files by `/proc/self/fd/N`: those have no path for Landlock
to deny. What an older ABI cannot restrict (TCP before 4, signals and abstract sockets before 6) is stopped by the
network and process namespaces and by seccomp, so ABI 1 is enough.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from typing import Final

from casemate.errors import HostError, OperationError

_CREATE: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION_QUERY: Final = 1
_PATH_BENEATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_EXECUTE: Final = 1
_ABI_1: Final = (1 << 13) - 1
_REFER: Final = 1 << 13  # ABI 2
_TRUNCATE: Final = 1 << 14  # ABI 3
_IOCTL_DEV: Final = 1 << 15  # ABI 5
_NETWORK: Final = (4, 0b11)  # since ABI 4: TCP bind, connect
_SCOPES: Final = (6, 0b11)  # since ABI 6: abstract sockets, signals

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Return the kernel's Landlock ABI, 0 when it has none."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION_QUERY))))


def missing() -> HostError:
    """Return the refusal for a host without Landlock."""
    return HostError(
        "the kernel has no Landlock",
        hint="boot Linux 5.13 or newer with `landlock` in its lsm= list (CONFIG_SECURITY_LANDLOCK=y)",
    )


def handled_rights(version: int) -> int:
    """Return the file-system rights that a ruleset for ABI *version* takes away."""
    rights = _ABI_1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        if version >= since:
            rights |= right
    return rights


def ruleset_attribute(version: int) -> bytes:
    """Return `struct landlock_ruleset_attr`, cut to what ABI *version* knows."""
    fields = [handled_rights(version), *(value for since, value in (_NETWORK, _SCOPES) if version >= since)]
    return struct.pack(f"={len(fields)}Q", *fields)


def restrict(writable: Sequence[str] = ()) -> int:
    """Give up every path except what lies under the directories *writable*; return the ABI in force.

    Raises:
        HostError: the kernel has no Landlock, or it is switched off.
        OperationError: a call failed; the caller must not go on.

    """
    version = abi()
    if version < 1:
        raise missing()
    attribute = ruleset_attribute(version)
    ruleset = _call(_CREATE, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint(0))
    try:
        for path in writable:
            _allow(ruleset, path, handled_rights(version) & ~_EXECUTE)
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        attribute = struct.pack("=Qi", rights, fd)
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), attribute, ctypes.c_uint(0))
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    return _check(_libc.syscall(number, *arguments))


def _check(result: int) -> int:
    if result < 0:
        raise OperationError(f"landlock: {os.strerror(ctypes.get_errno())}")
    return int(result)
