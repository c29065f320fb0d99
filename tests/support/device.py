"""A real device for a test: `casemate up` as a user would start it, on a home of its own, on free loopback ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READY_WITHIN = 150.0


@dataclass
class Device:
    """A running device and the commands that speak to it."""

    home: Path
    environ: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return str(self.status["endpoint"])

    @property
    def key(self) -> str:
        return (self.home / "run" / "default-app.key").read_text().strip()

    def cli(self, *arguments: str, check: bool = True, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return cli(self.environ, *arguments, check=check, text=text)

    def json(self, *arguments: str, check: bool = True) -> dict[str, Any]:
        return json.loads(self.cli(*arguments, "--json", check=check).stdout)

    def prompt(self, model: str) -> int:
        """Send *model* a prompt; returns the HTTP status."""
        place = urllib.parse.urlsplit(self.endpoint)
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
        body = {"model": model, "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 8}
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            return connection.getresponse().status

    def refresh(self) -> dict[str, Any]:
        self.status = self.json("status", check=False)
        return self.status

    def wait_ready(self, within: float = READY_WITHIN) -> None:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"up ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
            if self.refresh()["ready"]:
                return
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.status}\n{self.log.read_text()[-4000:]}")

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the decrypted journal entries, of *kinds* if given (the builder's name is in metadata.event_code)."""
        lines = self.cli("journal", "show", "--json", "-n", "0").stdout.splitlines()
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if not kinds or any(kind in json.dumps(row) for kind in kinds)]

    def pid_of(self, role: str) -> int:
        """Return the pid of a child, or of the process that really is the engine (not its wrapper); 0 while down."""
        status = self.refresh()
        if role == "engine":
            wrapper = status["models"][0]["pid"] if status["models"] else None
            return deepest_child(wrapper) if wrapper else 0
        return next((p["pid"] for p in status["processes"] if p["role"] == role), 0)

    def kill(self, role: str, number: int = signal.SIGKILL) -> int:
        """Signal the process of *role* once it is up; return its pid. (A pid of 0 would be this process group.)"""
        deadline = time.monotonic() + READY_WITHIN
        while not (pid := self.pid_of(role)):
            assert time.monotonic() < deadline, f"{role} is not there"
            time.sleep(0.05)
        os.kill(pid, number)
        return pid

    def stop(self, number: int = signal.SIGTERM, within: float = 25.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within)


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in {"PATH", "LANG", "HOME", "TERM"}}
    return {
        **kept,
        "CASEMATE_HOME": str(home),
        "CASEMATE_KEYFILE": str(home.parent / "keys" / "device.key"),
        "CASEMATE_CONFIG": str(home.parent / "casemate.toml"),
        **(extra or {}),
    }


def cli(
    environ: Mapping[str, str], *arguments: str, check: bool = True, text: str | None = None, within: float = 120
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "casemate", *arguments],
        env=dict(environ),
        capture_output=True,
        text=True,
        input=text,
        stdin=None if text is not None else subprocess.DEVNULL,
        timeout=within,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"casemate {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@contextlib.contextmanager
def running(
    home: Path,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    ready: bool = True,
    enter: Sequence[str] = (),
) -> Iterator[Device]:
    """Run `casemate up` with *arguments* until the block ends; *enter* leads into a namespace."""
    env = environment(home, environ)
    home.parent.mkdir(parents=True, exist_ok=True)
    log = home.parent / "up.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*enter, sys.executable, "-m", "casemate", "up", "--listen", "127.0.0.1:0", *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            process_group=0,
        )
    device = Device(home, env, process, log)
    try:
        if ready:
            device.wait_ready()
        yield device
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(25)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"up did not stop when it was asked to:\n{log.read_text()[-4000:]}") from None


def deepest_child(pid: int) -> int:
    """Follow the only-child chain down from *pid*: bubblewrap wraps the engine two deep."""
    while True:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return 0  # it died while we looked
        if not children:
            return pid
        pid = int(children[-1])


def descendants(pid: int) -> set[int]:
    """Return every live process below *pid*."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        try:
            tasks = list(Path(f"/proc/{todo[-1]}/task").iterdir())
        except OSError:
            tasks = []
        todo.pop()
        for task in tasks:
            with contextlib.suppress(OSError):
                fresh = {int(child) for child in (task / "children").read_text().split()} - found
                found |= fresh
                todo += fresh
    return found


def holds(pid: int, value: bytes) -> bool:
    """Whether the writable memory of *pid* holds *value*; asked as root."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, _, end = line.split()[0].partition("-")
            if " rw" in line:
                memory.seek(int(start, 16))
                if value in memory.read(int(end, 16) - int(start, 16)):
                    return True
    return False
