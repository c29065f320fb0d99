"""Frames: any split of the bytes gives the same messages; anything else closes the link."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats import ipc

messages = st.one_of(
    st.builds(ipc.Chunk, id=st.integers(0, 2**31), text=st.text(max_size=50)),
    st.builds(ipc.Done, id=st.integers(0, 2**31), finish_reason=st.sampled_from(["stop", "length"])),
    st.builds(ipc.Failed, id=st.integers(0, 9), code=st.sampled_from(["busy", "internal"])),
)


@given(st.lists(messages, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_any_chunking_of_the_bytes_gives_the_same_messages(sent, sizes):
    data = b"".join(ipc.encode(message) for message in sent)
    reader, got, at, turn = ipc.FrameReader(ipc.FromEngine), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        got += reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert got == sent
    assert reader.pending == 0


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_still_incomplete_and_never_another_error(data):
    reader = ipc.FrameReader(ipc.FromEngine, limit=64)
    try:
        reader.feed(data)
    except UntrustedDataError as error:
        assert error.check in {"ipc-frame", "ipc-frame-size"}


def test_an_oversize_frame_is_refused_from_its_length_alone():
    reader = ipc.FrameReader(ipc.FromEngine)
    with pytest.raises(UntrustedDataError) as caught:
        reader.feed(struct.pack("<I", ipc.FRAME_LIMIT + 1))
    assert caught.value.check == "ipc-frame-size"


def test_a_message_of_another_link_does_not_decode():
    reader = ipc.FrameReader(ipc.FromEngine)
    with pytest.raises(UntrustedDataError):
        reader.feed(ipc.encode(ipc.Load(model="m", path="/m")))


def test_unknown_fields_do_not_decode():
    body = b'{"t":"chunk","id":1,"text":"x","extra":1}'
    with pytest.raises(UntrustedDataError):
        ipc.FrameReader(ipc.FromEngine).feed(struct.pack("<I", len(body)) + body)


def test_an_oversize_message_is_refused_before_it_is_sent():
    with pytest.raises(ValueError, match="over the limit"):
        ipc.encode(ipc.Chunk(id=1, text="x" * (ipc.FRAME_LIMIT + 1)))
