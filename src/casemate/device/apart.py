"""Work with secrets in a short-lived process: what it leaves in its memory ends with it.

The agent is this process, or a fork of it, and may hold no key. Our own buffers are wiped, but a library that stretched
a passphrase, or the text that a person typed, leaves copies in freed memory that nobody can find to wipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from casemate.device import channel
from casemate.device.children import rebuild
from casemate.device.process import fatal_message
from casemate.errors import CasemateError, OperationError
from casemate.formats import ipc

T = TypeVar("T")
Work = Callable[[], tuple[T, Mapping[str, int]]]
"""Returns what it found out, and descriptors that it opened, by name."""

_PR_SET_PDEATHSIG: Final = 1
_MAX_FDS: Final = 8
_READ: Final = 65536
_libc = ctypes.CDLL(None, use_errno=True)


class _Report(msgspec.Struct):
    """What comes back beside the descriptors: a result, or the error that ended the work."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    fds: tuple[str, ...] = ()
    error: ipc.Fatal | None = None


def run(work: Work[T], kind: type[T], meanwhile: Callable[[], None] | None = None) -> tuple[T, dict[str, int]]:
    """Do *work* in a fork; return its result, of *kind*, and its descriptors, which the caller closes.

    *meanwhile* runs here beside it; it must end when *work* does.

    Raises:
        CasemateError: as *work* raised it.
        OperationError: the process ended without a word.

    """
    ours, theirs = channel.pair()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ours.close()
        os._exit(_work(theirs, work, parent))
    theirs.close()
    try:
        with ours:
            if meanwhile:
                meanwhile()
            report, fds = _receive(ours)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if report.error:
        raise rebuild(report.error)
    return msgspec.json.decode(report.result, type=kind), dict(zip(report.fds, fds, strict=True))


def _work(link: socket.socket, work: Work[T], parent: int) -> int:
    """Run in the fork, which must not run its parent's clean-up: everything ends here."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    fds: Mapping[str, int] = {}
    try:
        result, fds = work()
        report = _Report(msgspec.Raw(msgspec.json.encode(result)), tuple(fds))
    except CasemateError as error:
        report = _Report(error=fatal_message(error))
    except KeyboardInterrupt:
        return 1  # the parent got it too
    except BaseException:  # noqa: BLE001 - a fault of ours, shown as it would be anywhere else
        traceback.print_exc()
        return 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        socket.send_fds(link, [b"\0"], list(fds.values()))
        link.sendall(msgspec.json.encode(report))
    return 0


def _receive(link: socket.socket) -> tuple[_Report, list[int]]:
    _, fds, _, _ = socket.recv_fds(link, 1, _MAX_FDS)
    data = bytearray()
    while piece := link.recv(_READ):
        data += piece
    if not data:
        raise OperationError("the process that opens the keystore ended", hint="run `casemate doctor`")
    return msgspec.json.decode(data, type=_Report), fds
