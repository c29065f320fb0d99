"""The messages between device and fleet: bounded, closed, and one spelling for an inventory."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats import fleet_api as api

CHECK_IN = api.CheckIn(state="ok", agent="0.1", clock=1.5, health=api.Health(requests=3))
PRINTED = st.characters(exclude_categories=["Cs", "Cc"])
ITEMS = st.builds(
    api.Item,
    kind=st.sampled_from(["dpkg", "python", "hat"]),
    name=st.text(PRINTED, max_size=20),
    version=st.text(PRINTED, max_size=8),
    digest=st.none() | st.just("a" * 64),
)


def test_a_message_comes_back():
    assert api.parse(api.encode(CHECK_IN), api.CheckIn) == CHECK_IN


@pytest.mark.parametrize(
    ("body", "check"),
    [
        (b"", "body-format"),
        (b"{", "body-format"),
        (b"[" * 200_000, "body-format"),
        (b'{"state":' * 100_000, "body-format"),
        (b'{"x":' + b"[" * 500_000, "body-format"),
        (b'{"state":"ok","agent":"a","clock":1,"x":1}', "body-format"),
        (b'{"state":"fine","agent":"a","clock":1}', "body-format"),
        (b'{"state":"ok","agent":"' + b"a" * 129 + b'","clock":1}', "body-format"),
        (b'{"state":"ok","agent":"a","clock":1,"sequence":-1}', "body-format"),
        (b'{"state":"ok","agent":"a\\u0000","clock":1}', "body-format"),
        (b'{"state":"ok","agent":"a\\n","clock":1}', "body-format"),
        (b'{"state":"ok","agent":"a","clock":1,"inventory":"' + b"g" * 64 + b'"}', "body-format"),
        (b'{"state":"ok","agent":"\xff","clock":1}', "body-format"),
        (b" " * (api.MAX_BODY + 1), "body-size"),
    ],
)
def test_what_is_no_message_is_refused(body, check):
    with pytest.raises(UntrustedDataError) as caught:
        api.parse(body, api.CheckIn)
    assert caught.value.check == check


@given(st.binary(max_size=400))
def test_noise_is_refused_and_nothing_else(noise):
    try:
        parsed = api.parse(noise, api.CheckIn)
    except UntrustedDataError:
        return
    assert isinstance(parsed, api.CheckIn)


def test_an_inventory_of_a_million_packages_is_refused():
    one = b'{"kind":"dpkg","name":"a","version":"1"}'
    with pytest.raises(UntrustedDataError):
        api.parse(b'{"items":[' + b",".join([one] * 20_001) + b"]}", api.Inventory)
    with pytest.raises(UntrustedDataError) as caught:
        api.parse(b'{"items":[' + b",".join([one] * 1_000_000) + b"]}", api.Inventory)
    assert caught.value.check == "body-size"


@given(st.lists(ITEMS, max_size=8), st.randoms())
def test_the_same_items_have_one_spelling(items, random):
    shuffled = [*items, *items]
    random.shuffle(shuffled)
    first, second = (api.canonical_inventory(api.Inventory(tuple(each))) for each in (items, shuffled))
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    assert set(api.parse(first, api.Inventory).items) == set(items)


def test_a_device_ignores_what_a_newer_server_adds():
    answer = api.parse(b'{"server_time":1,"next_checkin_s":60,"later":{"a":[1]}}', api.CheckInAnswer)
    assert answer.next_checkin_s == 60
