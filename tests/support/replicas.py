"""Two servers of one fleet behind nginx, as docs/scale.md has them, and devices that live through it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import quote

from casemate.crypto import x509
from casemate.formats import envelope
from support import databases
from support.fleet import Device, Server, Stream, checkin, exchange, until

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"
WHOLE = """
daemon off; pid {run}/nginx.pid; error_log {run}/error.log; worker_processes 1; {user}
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {run}/body; proxy_temp_path {run}/proxy; fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u;
  scgi_temp_path {run}/s;
  {body}
}}
"""


def configuration() -> str:
    """Return the nginx configuration of the guide."""
    return re.search(r"```nginx\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL).group(1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def nginx(run: Path, body: str, port: int):
    user = "user root;" if os.geteuid() == 0 else ""
    path = run / "nginx.conf"
    path.write_text(WHOLE.format(run=run, body=body, user=user))
    proxy = subprocess.Popen(
        [NGINX, "-c", path, "-p", run], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until(lambda: listens(port) or proxy.poll() is not None)
        assert proxy.poll() is None, (run / "error.log").read_text()
        yield proxy
    finally:
        proxy.terminate()
        proxy.wait(30)


class Replica(Server):
    """One of several servers; what clients see is nginx."""

    ports: dict[str, int]

    def address(self, listener):
        return "127.0.0.1", self.ports[listener]


class Site:
    """A database, two servers, nginx."""

    def __init__(self, run: Path, *options: str) -> None:
        self.run = run
        self.url = databases.new("postgresql", run)
        self.ports = {name: free_port() for name in ("people", "devices", "enrol")}
        self.servers: list[Replica] = []
        self.more = options

    def options(self, name: str) -> list[str]:
        return [f"--listen-{each}=unix:{self.run}/{each}-{name}.sock" for each in self.ports]

    def add(self, name: str) -> Replica:
        directory = self.run / f"fleet-{name}"
        first = ["--name=localhost", f"--devices-url=https://localhost:{self.ports['devices']}"]
        if self.servers:
            shutil.copytree(self.servers[0].directory, directory)
            first = []
        database = None if self.servers else self.url
        server = Replica(directory, *self.options(name), *first, *self.more, database=database)
        server.ports = self.ports
        self.servers.append(server)
        server.start()
        return server

    def body(self) -> str:
        """Return the guide's configuration with this site's paths and ports."""
        text = configuration().replace("/srv/", f"{self.run}/").replace("/run/casemate/", f"{self.run}/")
        for number, name in ((8444, "devices"), (8445, "enrol"), (443, "people")):
            text = text.replace(f"listen {number} ssl", f"listen 127.0.0.1:{self.ports[name]} ssl")
        return text

    def authorities(self) -> None:
        ca = self.servers[0].directory / "ca"
        pems = [ca / "root.pem", *sorted(ca.glob("intermediate-*.pem"))]
        (self.servers[0].directory / "authorities.pem").write_text("".join(each.read_text() for each in pems))


@contextlib.contextmanager
def running(run: Path, *options: str):
    """Give a `Site` with two servers and nginx before them."""
    run.chmod(0o755)
    site = Site(run, *options)
    try:
        site.add("a")
        site.add("b")
        site.authorities()
        with nginx(run, site.body(), site.ports["devices"]):
            yield site
    finally:
        for server in site.servers:
            server.stop()


class Worker(threading.Thread):
    """A device that checks in without a pause, obeys each command once, and answers until its answer is taken."""

    def __init__(self, server: Server, directory: Path, asset: str) -> None:
        super().__init__(daemon=True)
        self.device = Device(server, directory, asset).enrol()
        self.obeyed: list[int] = []
        self.again = 0  # deliveries of what was obeyed already
        self.checkins = 0
        self.faults: list[str] = []
        self.ending = threading.Event()
        self._owed: dict[str, dict] = {}
        self._connection: http.client.HTTPSConnection | None = None

    def run(self) -> None:
        while not self.ending.is_set():
            try:
                self._turn()
            except (OSError, http.client.HTTPException) as error:
                self._fault(type(error).__name__)
        if self._connection:
            self._connection.close()

    def _turn(self) -> None:
        answer = self._ask("/device/v1/checkin", checkin(sequence=max(self.obeyed, default=0)))
        if answer.status != 200:
            self._fault(str(answer.status))
            return
        self.checkins += 1
        for delivery in answer.json().get("commands", ()):
            sequence = json.loads(envelope.parse(_raw(delivery), envelope.COMMAND_TYPE).payload)["sequence"]
            if sequence in self.obeyed:
                self.again += 1
            else:
                self.obeyed.append(sequence)  # what a device does durably before it answers
            self._owed[delivery["id"]] = delivery
        for name, delivery in list(self._owed.items()):
            body = self.device.signed(delivery)
            status = self._ask(f"/device/v1/commands/{name}/ack", body).status
            if status == 204:
                del self._owed[name]
            else:
                self._fault(f"ack {status}")
        self.ending.wait(0.02)

    def _ask(self, path: str, message: object):
        if self._connection is None:
            host, port = self.device.server.address("devices")
            context = self.device.server.context(self.device.identity)
            self._connection = http.client.HTTPSConnection(host, port, timeout=30, context=context)
        return exchange(self._connection, "POST", path, json.dumps(message).encode())

    def _fault(self, why: str) -> None:
        """Note it and come back a little later, on a new connection."""
        self.faults.append(why)
        if self._connection:
            self._connection.close()
            self._connection = None
        self.ending.wait(0.1)


class Listener(threading.Thread):
    """A device that holds the wake stream, comes back when it ends, and notes what it heard."""

    def __init__(self, device: Device) -> None:
        super().__init__(daemon=True)
        self.device = device
        self.heard: list[str] = []
        self.open = False
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            with contextlib.suppress(OSError), Stream(self.device) as stream:
                while name := stream.event():
                    self.heard.append(name)
                    self.open = name != "bye"
            self.open = False
            time.sleep(0.1)


def _raw(delivery: dict) -> bytes:
    return base64.b64decode(delivery["envelope"])


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("fleet")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def directly(server: Server, path: str):
    """Ask *server*'s people's listener on its socket."""
    return _on_socket(server.addresses["people"], "GET", path)


def as_proxy(server: Server, device: Device, path: str, message: object):
    """Pass on a message of *device* to *server* as nginx would, past nginx: to this server and no other."""
    headers = {"X-Casemate-Client-Cert": quote(x509.to_pem(device.certificate)), "Host": "fleet"}
    return _on_socket(server.addresses["devices"], "POST", path, json.dumps(message).encode(), headers)


def _on_socket(address: str, *asked):
    connection = _Unix(Path(address.removeprefix("unix:")))
    try:
        return exchange(connection, *asked)
    finally:
        connection.close()
