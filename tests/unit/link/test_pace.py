"""When the link speaks, and how it reads the wake stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.link import pace
from casemate.link.sse import LINE_LIMIT, RETRY_LIMIT, EventReader


@given(st.floats(0, 0.999), st.integers(1, 100), st.floats(0, 1e9))
def test_a_wait_after_failures_is_bounded_and_never_below_what_was_asked(share, failures, asked):
    found = pace.Pace(lambda: share)
    for _ in range(failures):
        wait = found.failed(asked)
    asked = min(asked, pace.LONGEST)
    assert asked <= wait <= asked + pace.LAST_CEILING


def test_the_ceiling_doubles_and_an_answer_ends_it():
    found = pace.Pace(lambda: 1.0)
    assert [found.failed() for _ in range(4)] == [2, 4, 8, 16]
    assert found.answered(60) == 60
    assert found.failed() == 2


@given(st.floats(allow_nan=False))
def test_what_the_server_asks_for_is_bounded(wanted):
    assert pace.SHORTEST <= pace.Pace(lambda: 0.5).answered(wanted) <= pace.LONGEST


@given(st.floats(0, 1))
def test_a_certificate_is_renewed_between_half_and_six_tenths_of_its_life(share):
    assert not pace.should_renew(149, 100, 200, share)
    assert pace.should_renew(160, 100, 200, share)


@given(st.floats(0, 0.999), st.floats(allow_nan=False))
def test_who_is_told_when_to_come_back_comes_at_any_moment_within_it(share, within):
    found = pace.events_pace(lambda: share)
    assert found.ended(within) == share * min(max(within, pace.EVENTS_FIRST), pace.EVENTS_LAST)


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        (b"retry: 2500", 2.5),
        (b"retry:0", 0.0),
        (b"retry: -1", None),
        (b"retry: 1e9", None),
        (b"retry: 999999999", RETRY_LIMIT),
        (b"retry: 99999999999999", None),
        (b"data: 7", None),
    ],
)
def test_when_to_come_back_is_read_within_bounds(line, seconds):
    reader = EventReader()
    reader.feed(line + b"\nevent: bye\ndata: {}\n\n")
    assert reader.retry == seconds


@given(st.lists(st.integers(1, 40)))
def test_events_are_the_same_however_the_stream_is_cut(cuts):
    stream = b": hello\n\nevent: wake\ndata: {}\n\nevent:quarantine\r\ndata: x\r\n\r\ndata: y\n\nevent: half"
    reader, found, at = EventReader(), [], 0
    for cut in cuts:
        found += reader.feed(stream[at : at + cut])
        at += cut
    found += reader.feed(stream[at:])
    assert found == ["wake", "quarantine", "message"]


def test_events_have_names():
    assert EventReader().feed(b": hi\n\nevent: wake\ndata: {}\n\ndata: y\n\n") == ["wake", "message"]


def test_a_line_without_end_is_refused():
    reader = EventReader()
    reader.feed(b"x" * LINE_LIMIT)
    with pytest.raises(UntrustedDataError, match="without end"):
        reader.feed(b"x")


@given(st.binary())
def test_random_bytes_are_survived(data):
    EventReader().feed(data[:LINE_LIMIT])
