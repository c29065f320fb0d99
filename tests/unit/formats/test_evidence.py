"""Evidence survives its journey unchanged; a log is replayed as a TPM would extend."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats import evidence
from casemate.formats.evidence import LOAD_PCR, STACK_PCR, ZERO, EventKind
from support.evidence import FULL, STACK, Signer, event, log_of

words = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=128)
events = st.lists(st.builds(event, st.sampled_from(EventKind), words, st.just("a" * 64), words), max_size=20)


def test_evidence_is_read_as_it_was_written():
    made = Signer().answer()
    assert evidence.parse(evidence.encode(made)) == made


@given(events)
def test_any_log_replays_to_its_own_events(made):
    read = evidence.parse_log(evidence.encode_log(log_of(made)))
    assert evidence.replay(read)[0] == tuple(made)


def test_what_runs_and_what_it_was_given_go_to_different_pcrs():
    _, values = evidence.replay(log_of(STACK))
    assert values[LOAD_PCR] == ZERO
    one = log_of(STACK[:1])[0].content.encode()
    assert (
        evidence.replay(log_of(STACK[:1]))[1][STACK_PCR] == hashlib.sha256(ZERO + hashlib.sha256(one).digest()).digest()
    )


@pytest.mark.parametrize("changes", [{"pcr": 0}, {"pcr": 7}, {"pcr": 16}, {"pcr": 23}])
def test_a_record_for_a_pcr_that_is_not_ours_is_refused(changes):
    with pytest.raises(UntrustedDataError) as caught:
        evidence.replay((msgspec.structs.replace(log_of(STACK)[0], **changes),))
    assert caught.value.check == "log-pcr"


@pytest.mark.parametrize("content", ['{"kind":"shell"}', "{}", "not json", '{"digest":1}'])
def test_content_that_is_no_event_is_refused_though_it_was_measured(content):
    digest = evidence.RecordDigest("sha256", hashlib.sha256(content.encode()).hexdigest())
    with pytest.raises(UntrustedDataError) as caught:
        evidence.replay((evidence.Record(0, STACK_PCR, (digest,), "casemate.v1", content),))
    assert caught.value.check == "log-event"


def test_a_second_spelling_of_an_event_is_refused():
    content = log_of(STACK)[0].content.replace(":", ": ")
    digest = evidence.RecordDigest("sha256", hashlib.sha256(content.encode()).hexdigest())
    with pytest.raises(UntrustedDataError) as caught:
        evidence.replay((evidence.Record(0, STACK_PCR, (digest,), "casemate.v1", content),))
    assert caught.value.check == "log-event"


def test_evidence_is_bounded():
    made = Signer().answer(FULL)
    for big in (
        bytes(evidence.LIMIT + 1),
        evidence.encode(msgspec.structs.replace(made, log=made.log * 200)),
        evidence.encode(msgspec.structs.replace(made, attest=bytes(2000))),
        evidence.encode(msgspec.structs.replace(made, nonce=b"short")),
        evidence.encode(msgspec.structs.replace(made, pcrs={24: ZERO})),
    ):
        with pytest.raises(UntrustedDataError) as caught:
            evidence.parse(big)
        assert caught.value.check == "evidence-form"
