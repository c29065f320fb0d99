"""Plaintext weights in memory and nowhere else: a sealed memory file, and the room it needs.

Chunks are verified and decrypted into a private buffer, then copied into the memory file; when the last one is in, the
file is sealed: nobody, the vault included, can change, grow or shrink it, or make it executable.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from casemate.device.containers import open_chunks, write_all
from casemate.errors import HostError, OperationError
from casemate.formats.container import VerifiedContainer

_MFD_NOEXEC_SEAL: Final = 0x8
_SEALS: Final = 1 | 2 | 4 | 8 | 16  # SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE
_HEADROOM: Final = 32 << 20
_DEFAULT_CONTEXT: Final = 8192


def unseal_into_memory(fd: int, container: VerifiedContainer, tick: Callable[[], None]) -> int:
    """Decrypt the container open at *fd* into a sealed memory file and return its descriptor.

    *tick* is called after every chunk; what it raises stops the work.

    Raises:
        UntrustedDataError: a chunk does not verify; the memory is given back.
        OperationError: the memory ran out all the same.

    """
    memory = _memory_file()
    try:
        os.fchmod(memory, 0o444)  # the engine, another uid, opens it again through /proc: readable, never a program
        os.ftruncate(memory, container.header.plain_size)
        for span, _, plain in open_chunks(fd, container):
            write_all(memory, plain, span.plain_offset)
            tick()
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(memory)
        raise OperationError(
            f"cannot hold the model in memory: {error.strerror}", hint="use a smaller model, or free some memory"
        ) from error
    except BaseException:
        os.close(memory)
        raise
    return memory


def _memory_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            return os.memfd_create("weights", flags | _MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.memfd_create("weights", flags)  # a kernel before 6.3: the mode alone says "not a program"
    except OSError as error:
        raise HostError(
            f"this kernel has no sealable memory files: {error.strerror}", hint="use Linux 5.1 or later"
        ) from error


def require_memory(container: VerifiedContainer, context: int, slots: int, available: int) -> None:
    """Refuse a model that cannot fit: weights + key and value cache + 32 MiB must be free. All in bytes.

    *context* is tokens per slot (0: the model's own, at most 8192). Memory files are not reclaimable like page cache.

    Raises:
        OperationError: it does not fit.

    """
    facts = container.labels.facts
    tokens = (context or min(facts.context_length or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)) * max(slots, 1)
    cache = tokens * facts.kv_bytes_per_token
    wanted = container.header.plain_size + cache + _HEADROOM
    if wanted > available:
        raise OperationError(
            f"the model needs {_mib(wanted)} of memory ({_mib(container.header.plain_size)} weights,"
            f" {_mib(cache)} cache) and {_mib(available)} are free",
            hint="use a smaller model or quantisation, a smaller engine.context, or fewer engine.slots",
        )


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes may be used: the kernel's estimate, or what the control groups leave, if that is less."""
    limits = [_meminfo(proc), *_cgroup_room(proc, cgroups)]
    return min(limits)


def _meminfo(proc: Path) -> int:
    for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise HostError("this kernel does not say how much memory is free", hint="use Linux 3.14 or later")


def _cgroup_room(proc: Path, cgroups: Path) -> list[int]:
    """Room under every memory limit from this process's control group up to the root (version 2)."""
    room: list[int] = []
    for line in (proc / "self/cgroup").read_text(encoding="utf-8").splitlines():
        if not line.startswith("0::"):
            continue
        place = cgroups / line[3:].lstrip("/")
        while place.is_relative_to(cgroups):
            limit, used = _number(place / "memory.max"), _number(place / "memory.current")
            if limit is not None and used is not None:
                room.append(max(0, limit - used + _reclaimable(place / "memory.stat")))
            place = place.parent
    return room


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _reclaimable(path: Path) -> int:
    """Page cache the kernel drops before it refuses memory."""
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    except OSError:
        pass  # no statistics: count nothing
    return 0
