"""Small decisions at the edge: host names, loopback, TLS, what is said about a fault, body budgets."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.gateway import refusals
from casemate.device.gateway.exchange import MAX_BODY, BodyBudget, ClientGone, Exchange, host_name
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.shell import fault_place
from casemate.device.gateway.tls import is_loopback, require_tls, server_context
from casemate.errors import ConfigError


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:8080", "localhost"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:8080", "::1"),
        ("example.org.", "example.org"),
        ("localhost.evil.example", "localhost.evil.example"),
        ("evil.example:127.0.0.1", "evil.example"),
        ("", ""),
    ],
)
def test_host_names(header, name):
    assert host_name(header) == name


@given(st.text(max_size=40))
def test_no_host_header_crashes(header):
    host_name(header)


def test_off_loopback_needs_tls():
    for listen in ("127.0.0.1:8080", "[::1]:8080", "localhost:1", "127.9.9.9:1"):
        require_tls(listen, None)
    for listen in ("0.0.0.0:8080", "[::]:8080", "192.168.1.5:8080", "example.org:1", "[fe80::1%eth0]:1"):
        require_tls(listen, ("cert", "key"))
        with pytest.raises(ConfigError) as caught:
            require_tls(listen, None)
        assert "tls.certificate" in caught.value.hint
    assert not is_loopback("localhost.evil.example")


def test_a_bad_certificate_is_a_config_error(tmp_path):
    (tmp_path / "x.pem").write_text("nothing")
    for path in (tmp_path / "x.pem", tmp_path / "missing.pem"):
        with pytest.raises(ConfigError):
            server_context(str(path), str(path))


def test_a_fault_is_told_without_its_message():
    try:
        raise ValueError("the prompt was: my secret")  # noqa: TRY301
    except ValueError as error:
        told = fault_place(error)
    assert "ValueError at test_edges.py:" in told
    assert "secret" not in told


def test_long_waits_tell_clients_not_to_retry_by_themselves():
    assert "x-should-retry" not in refusals.limited("requests_per_minute", 5).headers
    assert refusals.limited("requests_per_day", 5000).headers["x-should-retry"] == "false"
    assert refusals.engine_down(None).headers["x-should-retry"] == "false"


def body_of(*messages, budget=None):
    async def main():
        queue = list(messages)

        async def receive():
            return queue.pop(0)

        exchange = Exchange({"type": "http", "headers": []}, receive, None)
        return await exchange.body(budget or BodyBudget(), lambda start: None)

    return asyncio.run(main())


def part(data, more=True):
    return {"type": "http.request", "body": data, "more_body": more}


def test_bodies_are_read_whole_and_bounded():
    assert body_of(part(b"a"), part(b""), part(b"b", more=False)) == b"ab"
    with pytest.raises(ApiError) as caught:
        body_of(part(b"x" * MAX_BODY), part(b"x"), part(b"never read", more=False))
    assert caught.value.status == 413
    with pytest.raises(ClientGone):
        body_of(part(b"x"), {"type": "http.disconnect"})


def test_all_bodies_together_are_bounded_and_given_back():
    budget = BodyBudget(10)
    with pytest.raises(ApiError) as caught:
        body_of(part(b"x" * 11), budget=budget)
    assert caught.value.status == 429
    assert body_of(part(b"x" * 10, more=False), budget=budget) == b"x" * 10
    assert body_of(part(b"x" * 10, more=False), budget=budget) == b"x" * 10
