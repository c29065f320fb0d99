"""Keys and wrong keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.apps import AppStore, read_apps
from casemate.device.gateway.auth import FREE_FAILURES, LONGEST_BLOCK, MAX_ADDRESSES, Authenticator, FailureThrottle
from casemate.device.gateway.exchange import Exchange
from casemate.device.gateway.refusals import ApiError
from casemate.device.home import Home


class Time:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def world(tmp_path):
    store = AppStore(Home(tmp_path / "home").create())
    key = store.add("kitchen")
    apps = read_apps(store.policy_path("x").parent)
    clock = Time()
    return Authenticator(lambda: apps, clock), key, clock


def request(*values, client="10.0.0.9", extra=()):
    headers = [(b"authorization", value.encode("latin-1")) for value in values]
    scope = {"type": "http", "headers": [*headers, *extra], "client": (client, 1)}
    return Exchange(scope, None, None)


def refused(authenticator, exchange):
    with pytest.raises(ApiError) as caught:
        authenticator.identify(exchange)
    return caught.value


def test_a_bearer_key_names_its_app(world):
    authenticator, key, _ = world
    assert authenticator.identify(request(f"Bearer {key}")).name == "kitchen"
    assert authenticator.identify(request(f"bearer  {key} ")).name == "kitchen"


def test_everything_else_is_401_with_a_challenge(world):
    authenticator, key, _ = world
    for values in (
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        [key],
        [f"Basic {key}"],
        [f"Bearer {key}x"],
        [f"Bearer {key}"] * 2,
    ):
        authenticator.throttle = FailureThrottle()
        error = refused(authenticator, request(*values))
        assert error.status == 401
        assert error.headers["www-authenticate"].startswith("Bearer")
        assert key not in error.message


def test_a_key_in_any_other_place_does_not_count(world):
    authenticator, key, _ = world
    for name in (b"x-api-key", b"api-key", b"cookie", b"proxy-authorization"):
        assert refused(authenticator, request(extra=[(name, key.encode())])).status == 401


def test_wrong_keys_are_throttled_longer_and_longer_but_a_good_key_always_works(world):
    authenticator, key, clock = world
    waits = []
    for _ in range(FREE_FAILURES):
        assert refused(authenticator, request("Bearer wrong")).status == 401
    for _ in range(12):
        error = refused(authenticator, request("Bearer wrong"))
        assert error.status == 429
        waits.append(int(error.headers["retry-after"]))
        assert authenticator.identify(request(f"Bearer {key}")).name == "kitchen"
        clock.now += waits[-1]
    assert waits == sorted(waits)
    assert waits[0] <= 2
    assert waits[-1] == LONGEST_BLOCK
    assert refused(authenticator, request("Bearer wrong", client="10.0.0.10")).status == 401


def test_an_address_is_forgiven_after_a_while(world):
    authenticator, _, clock = world
    for _ in range(20):
        refused(authenticator, request("Bearer wrong"))
    clock.now += 10_000
    assert refused(authenticator, request("Bearer wrong")).status == 401


def test_reports_are_few_and_complete():
    throttle, told, now = FailureThrottle(), [], 0.0
    for _ in range(6000):
        now += 0.01
        throttle.failed("10.0.0.9", now)
        if count := throttle.report("10.0.0.9", now):
            told.append(count)
    assert told == [1]
    assert throttle.reports(now + 61) == [("10.0.0.9", 5999)]
    assert throttle.reports(now + 200) == []


@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 1000)), max_size=50))
def test_memory_is_bounded_and_waits_too(events):
    throttle, now = FailureThrottle(), 0.0
    for address, pause in events:
        now += pause
        assert 0 <= throttle.failed(str(address), now) <= LONGEST_BLOCK
    for address in range(MAX_ADDRESSES + 50):
        throttle.failed(f"x{address}", now)
    assert len(throttle._records) <= MAX_ADDRESSES
