"""Probes that try to reach files, devices and the kernel's own file systems."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from casemate.device.escape.probe import NotTestableError, Probe, Targets, check, libc

_DAC: Final = ("CAP_DAC_OVERRIDE",)
LISTED_DIRECTORY: Final = "/usr/bin"
ROOT_HOME: Final = "/root"
_AT_FDCWD: Final = -100


def identity(path: str) -> str:
    """Return which directory *path* really is: listing it must work, and a stand-in has another identity."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            next(entries, None)
        facts = os.fstat(fd)
    finally:
        os.close(fd)
    return f"{facts.st_dev}:{facts.st_ino}"


def digest(path: str) -> str:
    """Return the SHA-256 of what *path* holds: proof of reading it without repeating it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _shadow(_: Targets) -> str:
    return digest("/etc/shadow")


def _root_home(_: Targets) -> str:
    return identity(ROOT_HOME)


def _list_host(_: Targets) -> str:
    return identity(LISTED_DIRECTORY)


def _write_tmp(targets: Targets) -> None:
    Path(targets.tmp_path).write_text(targets.token, "ascii")


def _write_etc(targets: Targets) -> None:
    Path(targets.etc_path).write_text(targets.token, "ascii")


def _chroot(_: Targets) -> None:
    os.chroot("/")


def _mknod(targets: Targets) -> None:
    path = Path(targets.scratch, f"node-{targets.token}")
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 0))
    path.unlink()


class _FileHandle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128))


def file_handle(path: str) -> tuple[bytes, int]:
    """Return the file handle of *path* and its type, with which `open_by_handle_at` needs no path."""
    handle = _FileHandle(128, 0)
    mount = ctypes.c_int()
    check(libc.name_to_handle_at(_AT_FDCWD, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0))
    return bytes(handle.data[: handle.bytes]), handle.type


def _open_by_handle(targets: Targets) -> str:
    if not targets.handle:
        raise NotTestableError("this file system has no file handles")
    data = bytes.fromhex(targets.handle)
    handle = _FileHandle(len(data), targets.handle_type)
    ctypes.memmove(handle.data, data, len(data))
    try:
        mount = os.open(targets.handle_mount, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        mount = _AT_FDCWD
    fd = check(libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY))
    return os.read(fd, 256).decode()


def _kvm(_: Targets) -> None:
    os.close(os.open("/dev/kvm", os.O_RDWR))


def _block(targets: Targets) -> None:
    if not targets.block_devices:
        raise NotTestableError("the host has no block device")
    last: OSError | None = None
    for device in targets.block_devices:
        try:
            os.close(os.open(device, os.O_RDONLY))
        except OSError as error:
            last = error
        else:
            return
    if last is not None:
        raise last


def _core_pattern(_: Targets) -> None:
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


def _sysfs(targets: Targets) -> None:
    if not targets.sysfs_file:
        raise NotTestableError("the host has no writable file in /sys")
    os.close(os.open(targets.sysfs_file, os.O_WRONLY))


PROBES: Final = (
    Probe("read_shadow", "read /etc/shadow", "U B L", _shadow, proof="secret", needs=_DAC),
    Probe("read_root_home", "list /root", "U B L", _root_home, proof="secret", needs=_DAC),
    Probe("list_host_dir", "list a directory of the host that is mounted inside", "L", _list_host, proof="secret"),
    Probe("write_tmp", "write into the host's /tmp", "B L", _write_tmp, proof="outside"),
    Probe("write_etc", "write into /etc", "U B L", _write_etc, proof="outside", needs=_DAC),
    Probe("chroot", "change the root directory", "U B L S", _chroot, needs=("CAP_SYS_CHROOT",)),
    Probe("mknod", "make a device node for a disk", "U B L S", _mknod, needs=("CAP_MKNOD",)),
    Probe(
        "open_by_handle",
        "open a host file by handle, without a path",
        "U B S",
        _open_by_handle,
        proof="secret",
        needs=("CAP_DAC_READ_SEARCH",),
    ),
    Probe("dev_kvm", "open /dev/kvm", "U B L", _kvm, needs=_DAC, absent=(errno.ENOENT,)),
    Probe("dev_block", "open a disk", "U B L", _block, needs=_DAC),
    Probe("core_pattern", "open the kernel's core_pattern to write", "U B L", _core_pattern, needs=_DAC),
    Probe("sysfs_write", "open a kernel setting in /sys to write", "U B L", _sysfs, needs=_DAC),
)
