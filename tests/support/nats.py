"""A real NATS server with JetStream, in a directory and on a port of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from support.fleet import until

SERVER = shutil.which("nats-server") or "/usr/sbin/nats-server"


class Nats:
    """A NATS server that can be killed and comes back with what lay on its disk."""

    def __init__(self, directory: Path, *, room: str = "") -> None:
        self.directory = directory
        self.room = room
        """What its streams may take of the disk, as "10MB"; empty: three quarters of what is free."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> Nats:
        command = [SERVER, "-js", "-a", "127.0.0.1", "-p", str(self.port), "-sd", str(self.directory / "nats")]
        if self.room:
            (self.directory / "nats.conf").write_text(f"jetstream {{ max_file_store: {self.room} }}\n")
            command += ["-c", str(self.directory / "nats.conf")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._listens)
        return self

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
