"""The wire: off loopback nothing is said in clear, and nothing older than TLS 1.3 is spoken."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess

import pytest

from casemate.formats import ipc
from support.gateway import running_gateway, weakened

IN_CLEAR = weakened("import casemate.device.gateway.serve as s", "s.is_loopback = lambda host: True")
OLDER = weakened(
    "import ssl, casemate.device.gateway.serve as s",
    "def old(certificate, key):",
    "    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)",
    "    context.load_cert_chain(certificate, key)",
    "    return context",
    "s.server_context = old",
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("apt install openssl")
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return certificate, key


def handshake(gateway, certificate, most):
    context = ssl.create_default_context(cafile=str(certificate[0]))
    context.maximum_version = most
    with (
        socket.create_connection(("127.0.0.1", gateway.port)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        return tls.version()


def test_only_tls_1_3_and_no_clear_text(tmp_path, certificate):
    with running_gateway(tmp_path, address="0.0.0.0", tls=certificate) as gateway:
        assert handshake(gateway, certificate, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises(ssl.SSLError):
            handshake(gateway, certificate, ssl.TLSVersion.TLSv1_2)
        with socket.create_connection(("127.0.0.1", gateway.port)) as raw:
            raw.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            raw.settimeout(5)
            try:
                assert b"HTTP/1.1" not in raw.recv(1024)
            except ConnectionResetError:
                pass
        with (
            socket.create_connection(("127.0.0.1", gateway.port)) as raw,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")


def test_off_loopback_without_a_certificate_it_does_not_start(tmp_path):
    with running_gateway(tmp_path, address="0.0.0.0") as gateway:
        assert isinstance(gateway.messages[0], ipc.Fatal)
        gateway.process.wait(10)
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", gateway.port), timeout=5)


def test_positive_control_without_the_rule_it_would_serve_in_clear(tmp_path):
    with running_gateway(tmp_path, address="0.0.0.0", argv=IN_CLEAR) as gateway:
        assert gateway.chat().status_code == 200


def test_positive_control_a_plain_context_would_speak_1_2(tmp_path, certificate):
    with running_gateway(tmp_path, tls=certificate, argv=OLDER) as gateway:
        assert handshake(gateway, certificate, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
