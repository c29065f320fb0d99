from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats import channel_set as fmt
from casemate.formats.channel_set import ChannelSet, Member

APP = Member("app", "shop", "1.0", 1, "a" * 32, "1" * 64)
MODEL = Member("model", "demo", "2.0", 2, "b" * 32, "2" * 64)
SET = ChannelSet(1, "stable", 3, (APP, MODEL))
RAW = fmt.encode(SET)
DIGEST = hashlib.sha256(RAW).hexdigest()


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(UntrustedDataError) as caught:
        call(*args, **kwargs)
    return caught.value.check


def raw(**fields: object) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(SET, **fields))


def test_what_is_made_is_read_and_verified():
    verified = fmt.verify(fmt.parse(RAW), channel="stable", size=len(RAW), sha256=DIGEST)
    assert verified.set == SET
    assert verified.set.member("model") == MODEL
    assert verified.set.member("os") is None
    assert MODEL.target_path == "model/demo/2.0/manifest.json"
    assert fmt.path("stable") == "channels/stable.json"


def test_the_deny_list_knows_content_not_numbers():
    renamed = msgspec.structs.replace(SET, generation=9, channel="beta")
    assert renamed.content_digest == SET.content_digest
    assert msgspec.structs.replace(SET, members=(MODEL,)).content_digest != SET.content_digest


def test_other_bytes_or_another_channel_are_refused():
    assert refused(fmt.verify, fmt.parse(RAW), channel="stable", size=1, sha256=DIGEST) == "channel-set-digest"
    assert refused(fmt.verify, fmt.parse(RAW), channel="beta", size=len(RAW), sha256=DIGEST) == "channel-set-name"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" " * (fmt.LIMIT + 1),
        b"\xff",
        RAW + b" ",
        b'{"schema":1,' + RAW[1:],
        raw(members=()),
        raw(members=(MODEL, APP)),
        raw(members=(APP, APP)),
        raw(generation=0),
        raw(schema=2),
        raw(channel="../x"),
        raw(stop="yes"),
    ],
)
def test_what_breaks_a_rule_is_refused(data):
    assert refused(fmt.parse, data) == "channel-set-form"


@given(st.binary(max_size=60), st.integers(0, len(RAW)), st.integers(0, 20))
def test_any_bytes_are_refused_or_are_a_set(noise, at, drop):
    data = RAW[:at] + noise + RAW[at + drop :]
    try:
        untrusted = fmt.parse(data)
    except UntrustedDataError:
        return
    assert fmt.encode(untrusted.claimed) == data
