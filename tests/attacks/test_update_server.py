"""A server, or whoever stands in for it, that wants the device's time or disk: it drips, never ends, or leads away.

Nothing it sends is believed without a signature, so it cannot change what runs. It could keep the updater busy for ever
(and security updates away), fill the disk, or make the device talk to other machines. The controls are the same
requests by the HTTP library alone, with its timeout between two bytes.
"""

from __future__ import annotations

import threading
import time

import pytest
import urllib3

from casemate.device.update.transport import Bounds, Transport, parse_endpoint
from casemate.errors import OperationError, UntrustedDataError
from support import mirror

HASTY = Bounds(connect=2.0, gap=2.0, grace=0.4, least_rate=100_000, tries=2)
PATH = "metadata/timestamp.json"
LIMIT = 16_384


@pytest.fixture
def site(tmp_path):
    with mirror.serving(tmp_path) as running:
        yield running


def get(url, path=PATH):
    with Transport(parse_endpoint(url), bounds=HASTY, sleep=lambda _: None) as transport:
        return transport.get(path, LIMIT)


def drip(handler, _path):
    """One byte every 20 ms, for five minutes."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(LIMIT))
    handler.end_headers()
    for _ in range(LIMIT):
        handler.wfile.write(b"x")
        time.sleep(0.02)
    return True


def endless(handler, _path):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"10000\r\n" + bytes(65_536) + b"\r\n")


def test_control_a_timeout_between_bytes_waits_for_a_drip(site):
    site.answer(PATH, drip)
    with urllib3.PoolManager() as pool:
        response = pool.request("GET", site.url + PATH, timeout=2.0, preload_content=False, retries=False)
        reader = threading.Thread(target=_read_some, args=(response,), daemon=True)
        reader.start()
        reader.join(5 * HASTY.grace)
        assert reader.is_alive()
        response.shutdown()
        reader.join(10)


def _read_some(response):
    try:
        response.read(LIMIT)
    except urllib3.exceptions.HTTPError:
        pass


def test_a_drip_is_given_up(site):
    site.answer(PATH, drip)
    begun = time.monotonic()
    with pytest.raises(OperationError, match="too slow"):
        get(site.url)
    assert time.monotonic() - begun < 5 * HASTY.tries * (HASTY.grace + LIMIT / HASTY.least_rate)


def test_control_without_a_limit_endless_data_is_read_for_ever(site):
    site.answer(PATH, endless)
    with urllib3.PoolManager() as pool:
        response = pool.request("GET", site.url + PATH, preload_content=False, retries=False)
        assert len(response.read(100 * LIMIT)) == 100 * LIMIT
        response.close()


def test_endless_data_is_cut_off_at_the_limit(site):
    site.answer(PATH, endless)
    with pytest.raises(UntrustedDataError) as caught:
        get(site.url)
    assert caught.value.check == "transfer-size"


@pytest.fixture
def inner(tmp_path):
    """A service that only this machine can reach."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "reboot").write_bytes(b"rebooting")
    with mirror.serving(tmp_path / "inner") as running:
        yield running


def test_control_a_redirect_leads_to_a_machine_the_server_chose(site, inner):
    site.answer(PATH, mirror.status(302, Location=inner.url + "reboot"))
    with urllib3.PoolManager() as pool:
        assert pool.request("GET", site.url + PATH).data == b"rebooting"


def test_a_redirect_leads_nowhere(site, inner):
    site.answer(PATH, mirror.status(302, Location=inner.url + "reboot"))
    with pytest.raises(OperationError, match="elsewhere"):
        get(site.url)
    assert inner.asked == []
