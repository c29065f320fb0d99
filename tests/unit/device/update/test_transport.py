"""The transport against servers that misbehave, over real sockets."""

from __future__ import annotations

import gzip
import hashlib
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from casemate.device.update.pace import NotNowError
from casemate.device.update.transport import Bounds, Transport, parse_endpoint
from casemate.errors import NotFoundError, OperationError, UntrustedDataError, UsageError
from support import mirror, proxy

HASTY = Bounds(connect=2.0, gap=2.0, grace=0.4, least_rate=100_000, tries=2)
LIMIT = 10_000
SOON = 5 * 2 * (0.4 + LIMIT / 100_000)  # five times the contract, for both tries


@pytest.fixture
def site(tmp_path):
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "file").write_bytes(b"content")
    with mirror.serving(tmp_path / "public") as running:
        yield running


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1; the pin of its key."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=updates", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", chain]
    subprocess.run([*make, *names], check=True, capture_output=True)
    spki = ["openssl", "pkey", "-in", key, "-pubout", "-outform", "DER"]
    pin = hashlib.sha256(subprocess.run(spki, check=True, capture_output=True).stdout).hexdigest()
    return chain, key, pin


def transport(url, *, bounds=HASTY, slept=None, pin="", via=""):
    sleep = (slept if slept is not None else []).append
    return Transport(parse_endpoint(url, pin=pin, proxy=via), bounds=bounds, sleep=sleep)


def get(url, path="file", limit=LIMIT, **how):
    with transport(url, **how) as opened:
        return opened.get(path, limit)


# --- whom it talks to


def test_an_address_is_https_or_loopback():
    assert parse_endpoint("https://updates.example/a").url == "https://updates.example/a/"
    assert parse_endpoint("http://127.0.0.1:8000").url
    assert parse_endpoint("http://[::1]:8000").url
    assert parse_endpoint("http://updates.example", allow_http=True).url
    with pytest.raises(UsageError, match="plain http"):
        parse_endpoint("http://updates.example")


NO_ADDRESS = [
    "x", "https://", "file:///etc/passwd", "ftp://x/", "https://u:p@x/", "https://x/?q=1", "https://x/#f",
    "https://x:99999/", "https://x/ y", "https://" + "x" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_anything_else_is_no_address(url):
    with pytest.raises(UsageError):
        parse_endpoint(url)


@pytest.mark.parametrize(("pin", "via"), [("00", ""), ("g" * 64, ""), ("", "https://proxy"), ("", "socks5://proxy")])
def test_a_pin_and_a_proxy_have_one_form(pin, via):
    with pytest.raises(UsageError):
        parse_endpoint("https://updates.example", pin=pin, proxy=via)


def test_tls_1_3_with_an_authority_the_system_trusts(tmp_path, certificate, monkeypatch):
    chain, key, _ = certificate
    (tmp_path / "file").write_bytes(b"content")
    with mirror.serving(tmp_path, certificate=(chain, key)) as site:
        with pytest.raises(UntrustedDataError) as caught:
            get(site.url)
        assert (caught.value.check, site.asked) == ("server-certificate", [])
        monkeypatch.setenv("SSL_CERT_FILE", str(chain))
        assert get(site.url) == b"content"
        with pytest.raises(UntrustedDataError):
            get(site.url.replace("127.0.0.1", "localhost"))  # the certificate does not name it


def test_tls_1_2_is_refused(tmp_path, certificate, monkeypatch):
    chain, key, _ = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    with mirror.serving(tmp_path, certificate=(chain, key), tls=ssl.TLSVersion.TLSv1_2) as site:
        with pytest.raises(OperationError):
            get(site.url)
        assert site.asked == []


def test_a_pinned_key_is_the_identity(tmp_path, certificate):
    chain, key, pin = certificate
    (tmp_path / "file").write_bytes(b"content")
    with mirror.serving(tmp_path, certificate=(chain, key)) as site:
        assert get(site.url, pin=pin) == b"content"
        assert get(site.url.replace("127.0.0.1", "localhost"), pin=pin) == b"content"
        site.asked.clear()
        with pytest.raises(UntrustedDataError) as caught:
            get(site.url, pin="0" * 64)
        assert (caught.value.check, site.asked) == ("server-key", [])


def test_through_a_proxy(site):
    with proxy.running() as (port, stop):
        assert get(site.url, via=f"http://127.0.0.1:{port}") == b"content"
        assert stop() == [f"GET {site.url}file False"]


def test_tls_through_a_proxy_is_a_tunnel_it_cannot_look_into(tmp_path, certificate):
    chain, key, pin = certificate
    (tmp_path / "file").write_bytes(b"content")
    with mirror.serving(tmp_path, certificate=(chain, key)) as site, proxy.running() as (port, stop):
        assert get(site.url, pin=pin, via=f"http://user:word@127.0.0.1:{port}") == b"content"
        assert stop() == [f"CONNECT {site.url[8:-1]} True"]


def test_nothing_is_told_but_the_path(site):
    with transport(site.url) as opened:
        site.answer("file", mirror.times(1, mirror.status(503, Set_Cookie="id=1")))
        opened.get("file", LIMIT)
    for headers in site.headers:
        assert set(headers) == {"host", "user-agent", "accept", "accept-encoding"}
        assert (headers["accept-encoding"], headers["user-agent"]) == ("identity", "casemate")


# --- what it gives up, and when


@pytest.mark.parametrize("code", [400, 401, 405, 451])
def test_what_the_server_refuses_is_asked_for_once(site, code):
    site.answer("file", mirror.status(code))
    with pytest.raises(OperationError, match=str(code)):
        get(site.url)
    assert site.asked == ["file"]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_what_is_not_there_is_not_found(site, code):
    site.answer("file", mirror.status(code))
    with pytest.raises(NotFoundError):
        get(site.url)
    assert site.asked == ["file"]


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_redirects_are_refused(site, code):
    site.answer("file", mirror.status(code, Location=site.url + "other"))
    with pytest.raises(OperationError, match="elsewhere"):
        get(site.url)
    assert site.asked == ["file"]


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503])
def test_what_may_pass_is_asked_for_again_with_jitter(site, code):
    slept = []
    site.answer("file", mirror.times(3, mirror.status(code)))
    assert get(site.url, bounds=Bounds(tries=5), slept=slept) == b"content"
    assert len(slept) == 3
    assert all(0 <= wait <= 2.0**attempt for attempt, wait in enumerate(slept, 1))
    site.answer("file", mirror.status(code))
    with pytest.raises(OperationError, match=str(code)):
        get(site.url)


def test_the_server_says_when_to_come_back(site):
    slept = []
    site.answer("file", mirror.times(1, mirror.status(503, Retry_After="90")))
    assert get(site.url, slept=slept) == b"content"
    assert slept == [90.0]
    site.answer("file", mirror.status(503, Retry_After="7200"))
    with pytest.raises(NotNowError, match="120 minutes") as caught:
        get(site.url, slept=slept)
    assert (caught.value.reason, len(slept)) == ("server", 1)


def test_a_retry_after_that_is_nonsense_is_none(site):
    site.answer("file", mirror.times(1, mirror.status(503, Retry_After="soon")))
    assert get(site.url) == b"content"


def test_nobody_there_is_an_error_after_a_few_tries():
    slept = []
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: refused
        with pytest.raises(OperationError, match="cannot fetch"):
            get(f"http://127.0.0.1:{held.getsockname()[1]}/", slept=slept)
    assert len(slept) == HASTY.tries - 1


def test_a_body_cut_off_is_not_taken_for_the_whole(site):
    data = b"0123456789"
    site.answer("file", lambda handler, path: site.give(handler, path, data, stop=4) or True)
    with pytest.raises(OperationError):
        get(site.url)
    assert site.asked == ["file"] * HASTY.tries


def test_another_part_than_was_asked_for_is_refused(site, tmp_path):
    path = "chunks/aa/" + "a" * 64

    def part(handler, _):
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-9/10")
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)
        return True

    site.answer(path, mirror.times(1, lambda handler, _: site.give(handler, path, b"0123456789", stop=4) or True))
    site.answer(f"(?:{path})", part)
    with pytest.raises(OperationError, match="another part"):
        get(site.url, path)


# --- how much, and how long


def test_a_file_larger_than_its_limit_is_refused_before_it_is_read(site):
    site.answer("file", lambda handler, path: site.give(handler, path, bytes(5_000_000)) or True)
    with pytest.raises(UntrustedDataError) as caught:
        get(site.url)
    assert caught.value.check == "transfer-size"


def test_endless_data_is_refused_at_the_limit(site):
    ended = threading.Event()

    def endless(handler, path):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")
        finally:
            ended.set()

    site.answer("file", endless)
    with pytest.raises(UntrustedDataError) as caught:
        get(site.url)
    assert caught.value.check == "transfer-size"
    assert ended.wait(10)  # the connection is closed: the server cannot go on


def test_compressed_answers_are_not_unpacked(site):
    packed = gzip.compress(bytes(1_000_000))

    def bomb(handler, path):
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(packed)))
        handler.end_headers()
        handler.wfile.write(packed)
        return True

    site.answer("file", bomb)
    assert get(site.url) == packed


def drip(connection, data=b"x"):
    """Send a byte at a time: no gap between two is long."""
    with connection:
        for at in range(3000):
            try:
                connection.sendall(data[at % len(data) :][:1])
            except OSError:
                return
            time.sleep(0.02)


@contextmanager
def dripping(data):
    """A server that drips *data* as soon as somebody connects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=drip, args=(connection, data), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("scheme", "data"),
    [
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + bytes(9000)),
        ("http", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9000),
        ("https", b"\x16\x03\x03\x40\x00" + bytes(9000)),
    ],
    ids=["body", "header", "handshake"],
)
def test_a_server_that_drips_is_given_up_in_bounded_time(scheme, data):
    begun = time.monotonic()
    with dripping(data) as port, pytest.raises(OperationError, match="too slow"):
        get(f"{scheme}://127.0.0.1:{port}/")
    assert time.monotonic() - begun < SOON


def test_waiting_for_our_own_limit_is_not_the_servers_slowness(site):
    (site.root / "file").write_bytes(bytes(9000))
    with transport(site.url) as opened:
        assert opened.get("file", LIMIT, taken=lambda _size: time.sleep(1.2)) == bytes(9000)


def test_one_connection_is_used_for_many_files(site):
    ports = []
    site.answer("file", lambda handler, _: ports.append(handler.client_address[1]) or False)
    with transport(site.url) as opened:
        for _ in range(5):
            opened.get("file", LIMIT)
    assert len(set(ports)) == 1
