"""A real fleet server in a process of its own, and devices made of `openssl`, `curl` and a socket."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import io
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from casemate.cli.main import run
from casemate.crypto import authority, client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.formats import envelope

DEADLINE = 30.0
START = 150.0


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """`casemate fleet serve` on free ports."""

    def __init__(self, directory: Path, *options: str, database: str | None = None) -> None:
        self.directory = directory
        self.enter: list[str] = []  # what leads into a network namespace
        self.source = ""  # the address that is called from; "": any
        self.options = [*options, *(["--database", database] if database else [])]
        self.process: subprocess.Popen[str] | None = None
        self.log = directory.with_name(directory.name + ".log")
        self.addresses: dict[str, str] = {}

    def start(self) -> Server:
        free = [f"--listen-{each}=127.0.0.1:0" for each in ("people", "devices", "enrol")]
        chosen = {option.partition("=")[0] for option in self.options}
        free = [option for option in free if option.partition("=")[0] not in chosen]
        command = [*self.enter, sys.executable, "-m", "casemate", "fleet", "serve", "--json", "--dir", self.directory]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, *free, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        kill = threading.Timer(START, self.process.kill)
        kill.start()
        try:
            line = self.process.stdout.readline()
        finally:
            kill.cancel()
        if not line:
            self.stop()
            raise AssertionError(f"the server did not start: {self.log.read_text()}")
        said = json.loads(line)
        if not said.get("ready"):
            self.stop()
            raise AssertionError(said)
        self.addresses = said
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()
        self.process = None
        return code

    def cli(self, *words: str, expect: int = 0) -> Any:
        """Run a verb of `casemate fleet` (in this process: the interpreter starts once)."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = run(["fleet", *words, "--dir", str(self.directory), "--json"])
        assert code == expect, (words, code, out.getvalue())
        return json.loads(out.getvalue()) if out.getvalue().strip() else None

    @property
    def ca(self) -> Path:
        return self.directory / "ca" / "root.pem"

    def address(self, listener: str) -> tuple[str, int]:
        host, _, port = self.addresses[listener].removeprefix("https://").rpartition(":")
        return host, int(port)

    def token(self, asset: str, *options: str) -> str:
        return self.cli("token", "create", "--asset", asset, *options)["token"]

    def has_heard_of(self, *names: str) -> None:
        """Return when the check-ins of *names* are in its database: they are written behind."""
        for name in names:
            until(lambda name=name: self.device(name)["last_seen"])

    def device(self, name: str) -> dict[str, Any]:
        return self.cli("device", "show", name)["device"]

    def metric(self, line: str) -> float:
        """Return the value of the metric that starts with *line*, 0 when it is not there."""
        page = self.get("people", "/metrics").body.decode()
        return next((float(each.rpartition(" ")[2]) for each in page.splitlines() if each.startswith(line)), 0.0)

    def get(self, listener: str, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.ask(listener, "GET", path, None, headers)

    def ask(
        self,
        listener: str,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        identity: Path | None = None,
    ) -> Answer:
        with self.connection(listener, identity) as connection:
            return exchange(connection, method, path, body, headers)

    @contextlib.contextmanager
    def connection(self, listener: str, identity: Path | None = None) -> Iterator[http.client.HTTPSConnection]:
        host, port = self.address(listener)
        source = (self.source, 0) if self.source else None
        connection = http.client.HTTPSConnection(
            host, port, timeout=DEADLINE, context=self.context(identity), source_address=source
        )
        try:
            yield connection
        finally:
            connection.close()

    def context(self, identity: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if identity:
            context.load_cert_chain(identity)
        return context

    def enrol(self, token: str, csr: bytes) -> Answer:
        return self.ask("enrol", "POST", "/.well-known/est/simpleenroll", csr, basic(token))


def basic(token: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"device:{token}".encode()).decode()}


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return Answer(response.status, dict(response.getheaders()), response.read())


@contextlib.contextmanager
def running(directory: Path, *options: str, database: str | None = None) -> Iterator[Server]:
    server = Server(directory, *options, database=database).start()
    try:
        yield server
    finally:
        server.stop()


class Device:
    """A device that has a key, and a certificate once it enrolled."""

    def __init__(self, server: Server, directory: Path, asset: str, *, key: EcKey | None = None) -> None:
        self.server = server
        self.asset = asset
        self.key = key or EcKey.generate()
        directory.mkdir(parents=True, exist_ok=True)
        self.identity = directory / f"{asset}.pem"
        self.certificate = b""

    def enrol(self, token: str | None = None, *options: str) -> Device:
        answer = self.server.enrol(
            token or self.server.token(self.asset, *options), client_certificate.make_request(self.key)
        )
        assert answer.status == 200, (answer.status, answer.body)
        self.take(answer.body)
        return self

    def take(self, body: bytes) -> None:
        (leaf,) = client_certificate.of_pkcs7(base64.b64decode(body))
        self.certificate = leaf.der
        self.identity.write_bytes(self.key.pem() + client_certificate.to_pem([leaf]))

    @property
    def id(self) -> str:
        return authority.facts(self.certificate).device

    def ask(self, method: str, path: str, message: Any = None) -> Answer:
        body = json.dumps(message).encode() if message is not None else None
        return self.server.ask("devices", method, path, body, identity=self.identity)

    def checkin(self, **more: Any) -> Answer:
        return self.ask("POST", "/device/v1/checkin", checkin(**more))

    def answer(self, delivery: dict[str, Any], *, outcome: str = "done", **facts: bool) -> Answer:
        body = self.signed(delivery, outcome=outcome, **facts)
        return self.ask("POST", f"/device/v1/commands/{delivery['id']}/ack", body)

    def signed(self, delivery: dict[str, Any], *, outcome: str = "done", **facts: bool) -> dict[str, str]:
        """Return the body of an acknowledgement."""
        raw = base64.b64decode(delivery["envelope"])
        parsed = envelope.parse(raw, envelope.COMMAND_TYPE)
        command = json.loads(parsed.payload)
        answer = envelope.Answer(
            schema=1,
            fleet=command["fleet"],
            device=self.id,
            sequence=command["sequence"],
            verb=command["verb"],
            command=parsed.digest,
            outcome=outcome,
            time=int(time.time()),
            facts=facts,
        )
        signed = envelope.sign_answer(envelope.encode_answer(answer), self.key)
        return {"acknowledgement": base64.b64encode(signed).decode()}

    def stream(self) -> Stream:
        return Stream(self)


def checkin(**more: Any) -> dict[str, Any]:
    return {"state": "ok", "agent": "test", "clock": time.time(), **more}


class Stream:
    """An open wake stream, read line by line."""

    def __init__(self, device: Device) -> None:
        raw = socket.create_connection(device.server.address("devices"), DEADLINE)
        self.socket = device.server.context(device.identity).wrap_socket(raw, server_hostname="127.0.0.1")
        self.socket.sendall(b"GET /device/v1/events HTTP/1.1\r\nHost: fleet\r\n\r\n")
        self.file = self.socket.makefile("rb")

    def event(self) -> str:
        """Return the next event's name, "" at the end of the stream."""
        for line in self.file:
            if line.startswith(b"event: "):
                return line[7:].decode().strip()
        return ""

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def until(what: Any, seconds: float = DEADLINE) -> Any:
    """Return the first true result of *what*."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found
