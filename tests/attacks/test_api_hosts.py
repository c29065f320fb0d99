"""DNS rebinding and cross-origin calls: the page of an attacker, in a browser on the device, gets nothing."""

from __future__ import annotations

import socket

import httpx
import pytest

from support.gateway import running_gateway, weakened

ANY_HOST = weakened(
    "from casemate.device.gateway.context import Gateway",
    "Gateway.accepts_host = Gateway.app_accepts_host = lambda self, *rest: True",
)
IN_CLEAR = weakened("import casemate.device.gateway.serve as s", "s.is_loopback = lambda host: True")
APPS = {"default": None, "public": 'hosts = ["chat.example.org"]'}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with running_gateway(tmp_path_factory.mktemp("hosts"), apps=APPS, settings={"hosts": ["Pi.Local"]}) as running:
        yield running


def own_address():
    """Return an address of this machine that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return probe.getsockname()[0]


def status(gateway, host, path="/v1/models", app="default"):
    return gateway.get(path, key=gateway.keys[app], headers={"host": host}).status_code


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8080",
        "0.0.0.0",
        "[::]",
        "x@localhost",
    ],
)
def test_a_rebound_name_gets_no_answer_not_even_the_page_or_a_probe(gateway, host):
    for path in ("/v1/models", "/", "/chat.js", "/healthz", "/readyz"):
        assert status(gateway, host, path) == 421


def test_loopback_and_configured_names_are_answered(gateway):
    for host in ("localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:8080", "pi.local", "pi.local:443", "localhost."):
        assert status(gateway, host) == 200, host


def test_off_loopback_the_address_itself_is_a_name_and_no_other_address_is(tmp_path):
    with running_gateway(tmp_path, address="0.0.0.0", argv=IN_CLEAR) as gateway:
        assert status(gateway, "127.0.0.1") == 200
        for host in ("0.0.0.0", "10.1.2.3", "169.254.169.254"):
            assert status(gateway, host) == 421
        own = own_address()
        if own:
            headers = {"authorization": f"Bearer {gateway.key}"}
            url = f"http://{own}:{gateway.port}/v1/models"
            assert httpx.get(url, headers=headers, trust_env=False).status_code == 200
            rebound = {**headers, "host": "evil.example"}
            assert httpx.get(url, headers=rebound, trust_env=False).status_code == 421


def test_a_name_of_one_apps_policy_is_not_a_name_for_another(gateway):
    assert status(gateway, "chat.example.org", app="public") == 200
    assert status(gateway, "chat.example.org", app="default") == 421


def raw(gateway, *lines):
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.sendall("\r\n".join(("GET /healthz HTTP/1.1", *lines, "connection: close", "", "")).encode())
        sock.settimeout(10)
        data = b""
        while part := sock.recv(65536):
            data += part
    return int(data.split()[1])


def test_no_host_two_hosts_or_an_absolute_target_do_not_go_around_it(gateway):
    assert raw(gateway, "host: localhost") == 200
    assert raw(gateway) in {400, 421}
    assert raw(gateway, "host: localhost", "host: evil.example") in {400, 421}
    assert raw(gateway, "host: evil.example", "x-forwarded-host: localhost", "forwarded: host=localhost") == 421


def test_another_origin_gets_no_permission_to_read(gateway):
    for method in ("OPTIONS", "GET"):
        headers = {
            "origin": "https://evil.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
            "authorization": f"Bearer {gateway.key}",
        }
        answer = httpx.request(method, f"{gateway.url}/v1/models", headers=headers, trust_env=False)
        assert not any(name.startswith("access-control-") for name in answer.headers)
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_metrics_are_on_their_own_socket_and_check_the_host_too(gateway):
    assert gateway.get("/metrics").status_code == 404
    assert httpx.get(gateway.metrics_url, trust_env=False).status_code == 200
    assert httpx.get(gateway.metrics_url, headers={"host": "evil.example"}, trust_env=False).status_code == 421


def test_positive_control_without_the_check_a_rebound_name_reads_the_models(tmp_path):
    with running_gateway(tmp_path, argv=ANY_HOST) as gateway:
        assert status(gateway, "evil.example") == 200
