"""A TPM as a device node: a terminal in raw mode stands for `/dev/tpmrm0`, and what is written there reaches swtpm.

For hosts whose kernel makes no TPM nodes of its own (no vtpm-proxy, no CUSE). The TSS opens it as it opens a chip's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import threading
import tty
from collections.abc import Iterator

from support.swtpm import SoftwareTpm

_HEADER = struct.Struct(">HI")  # a command's tag and size


@contextlib.contextmanager
def terminal(chip: SoftwareTpm) -> Iterator[str]:
    """Serve *chip* on a terminal until the block ends; yields its path."""
    master, slave = os.openpty()
    tty.setraw(slave)
    path = os.ttyname(slave)
    shutil.chown(path, group="tss")
    os.chmod(path, 0o660)
    ended = threading.Event()
    relay = threading.Thread(target=_relay, args=(chip, master, ended), daemon=True)
    relay.start()
    try:
        yield path
    finally:
        ended.set()
        os.write(slave, b"\0" * _HEADER.size)  # wakes the relay
        relay.join(10)
        os.close(slave)
        os.close(master)


def _relay(chip: SoftwareTpm, master: int, ended: threading.Event) -> None:
    while True:
        command = os.read(master, 4096)
        if ended.is_set():
            return
        while len(command) < _HEADER.size or len(command) < _HEADER.unpack_from(command)[1]:
            command += os.read(master, 4096)
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(chip.tcti.partition("path=")[2])
            server.sendall(command)
            os.write(master, server.recv(4096))
