"""Behind nginx: what a client writes into headers reaches nobody, and the socket behind the proxy believes no stranger.

Control: the header that nginx sets is what identifies a device, so whoever could write to the socket could name one;
that is why it belongs to the proxy alone.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from casemate.clock import SystemClock
from casemate.crypto import authority, x509
from casemate.crypto.authority import Issuer
from casemate.crypto.ecdsa import EcKey
from casemate.errors import HostError
from casemate.fleet import listeners, pki, selftest, serve
from casemate.fleet.app import devices_app
from casemate.fleet.context import Fleet
from casemate.fleet.home import FleetHome
from casemate.fleet.peer import ProxyPeers, read_peer
from support.fleet import Device, Server, checkin, exchange, running, until

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
HEADER = "X-Casemate-Client-Cert"
CONFIGURATION = """
daemon off; pid {run}/nginx.pid; error_log {run}/error.log; worker_processes 1; {user}
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {run}/body; proxy_temp_path {run}/proxy; fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u;
  scgi_temp_path {run}/s;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_protocols TLSv1.3;
    ssl_certificate {tls}/server.pem;
    ssl_certificate_key {tls}/server.key;
    ssl_client_certificate {run}/authorities.pem;
    ssl_verify_client optional;
    ssl_verify_depth 2;
    location / {{
      proxy_pass http://unix:{run}/devices.sock;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header X-Casemate-Client-Cert $ssl_client_escaped_cert;
      proxy_buffering off;
    }}
  }}
}}
"""


class Gullible(ProxyPeers):
    """Believes every header that holds a certificate: what the self-test is there to find."""

    def of(self, request):
        values = request.headers.getlist(HEADER)
        return read_peer(x509.from_pem(unquote(values[-1]))) if values else None


def self_test(directory, *, peers=ProxyPeers, mode=0o660):
    async def work():
        home, clock = FleetHome(directory / "fleet"), SystemClock()
        await serve.prepare(home, clock, serve.Options())
        fleet = Fleet.open(home, clock)
        path = directory / "devices.sock"
        listener = listeners.Listener(devices_app(fleet, peers(fleet)), listeners.bind(f"unix:{path}"), None)
        path.chmod(mode)
        task = asyncio.create_task(listener.serve())
        while not listener.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            await selftest.prove_that_a_socket_believes_no_stranger(path, fleet.authority, clock.wall())
        finally:
            listener.should_exit = True
            await task
            await fleet.store.close()

    asyncio.run(work())


def test_a_server_that_believes_any_header_refuses_to_start(tmp_path):
    with pytest.raises(HostError, match="stranger was believed"):
        self_test(tmp_path, peers=Gullible)


def test_a_socket_that_everybody_may_write_to_is_refused(tmp_path):
    with pytest.raises(HostError, match="everybody may write"):
        self_test(tmp_path, mode=0o666)


def test_control_the_self_test_of_a_socket_passes(tmp_path):
    self_test(tmp_path)


class Behind(Server):
    """The devices' listener as clients see it: nginx."""

    port = 0

    def address(self, listener):
        return ("127.0.0.1", self.port) if listener == "devices" else super().address(listener)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("fleet")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    run = tmp_path_factory.mktemp("proxy")
    run.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Behind(
        run / "fleet", f"--listen-devices=unix:{run}/devices.sock", f"--devices-url=https://127.0.0.1:{port}"
    )
    server.port, server.run = port, run
    server.start()
    home = FleetHome(server.directory)
    pki.listener_certificate(home, ("127.0.0.1", "localhost"), SystemClock())
    chain = pki.load(home, SystemClock()).chain()
    (run / "authorities.pem").write_text("".join(map(x509.to_pem, chain)))
    configuration = run / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(CONFIGURATION.format(run=run, port=port, tls=home.tls, user=user))
    proxy = subprocess.Popen(
        [NGINX, "-c", configuration, "-p", run], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: listens(port))
        yield server
    finally:
        proxy.terminate()
        proxy.wait(30)
        server.stop()


@pytest.fixture(scope="module")
def honest(proxied, tmp_path_factory):
    return Device(proxied, tmp_path_factory.mktemp("honest"), "honest").enrol()


def ask(server, headers=None, identity=None):
    return server.ask(
        "devices", "POST", "/device/v1/checkin", json.dumps(checkin()).encode(), headers, identity=identity
    )


def directly(server, headers):
    connection = UnixConnection(server.run / "devices.sock")
    try:
        return exchange(connection, "POST", "/device/v1/checkin", json.dumps(checkin()).encode(), headers).status
    finally:
        connection.close()


def named(certificate: bytes) -> dict[str, str]:
    return {HEADER: quote(x509.to_pem(certificate))}


def test_a_device_is_known_through_the_proxy(proxied, honest):
    assert honest.checkin().status == 200
    with honest.stream() as stream:
        assert stream.event() == "hello"


def test_a_forged_header_without_a_certificate_is_nobody(proxied, honest):
    forged = named(honest.certificate)
    assert ask(proxied, forged).status == 401
    assert ask(proxied, {HEADER.lower(): forged[HEADER], HEADER.replace("-", "_"): forged[HEADER]}).status == 401


def test_a_forged_header_beside_a_certificate_names_nobody_else(proxied, honest, tmp_path):
    other = Device(proxied, tmp_path, "other").enrol()
    proxied.cli("device", "quarantine", "other")
    until(lambda: other.checkin().json().get("commands"))
    # the answer is the one for `other`, which has a command waiting, and not the one for the device in the header
    assert ask(proxied, named(honest.certificate), other.identity).json()["commands"]


def test_a_certificate_of_a_stranger_is_refused_by_proxy_and_socket(proxied, honest, tmp_path):
    key, leaf = EcKey.generate(), EcKey.generate()
    root = authority.make_root(key, "Casemate fleet devices 1", time.time(), 10)
    forged = Issuer(key, root).device(leaf.public, honest.id, time.time(), 3600)
    identity = tmp_path / "rogue.pem"
    identity.write_bytes(leaf.pem() + x509.to_pem(forged).encode())
    assert ask(proxied, identity=identity).status == 400
    assert directly(proxied, named(forged)) == 401


def test_revocation_reaches_through_the_proxy(proxied, tmp_path):
    device = Device(proxied, tmp_path, "leaves").enrol()
    assert device.checkin().status == 200
    proxied.cli("device", "revoke", "leaves")
    until(lambda: device.checkin().status == 401, 5)


@pytest.mark.parametrize("value", ["", "x", "%00", "-----BEGIN CERTIFICATE-----", "a" * 9000])
def test_a_header_that_is_no_certificate_is_nobody(proxied, value):
    assert directly(proxied, {HEADER: value}) == 401


def test_the_socket_belongs_to_its_owner_and_group_alone(proxied):
    assert (proxied.run / "devices.sock").stat().st_mode & 0o777 == 0o660


def test_control_on_the_socket_the_header_is_believed(proxied, honest):
    assert directly(proxied, named(honest.certificate)) == 200


def test_control_on_our_own_tls_listener_the_same_header_is_nothing(tmp_path):
    with running(tmp_path / "fleet") as server:
        device = Device(server, tmp_path, "plain").enrol()
        with pytest.raises(OSError):
            ask(server, named(device.certificate))
        assert device.checkin().status == 200
