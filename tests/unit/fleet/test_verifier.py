"""Evidence is proven before it is judged, and no question that was not answered counts as answered well."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.fleet import learning, verifier
from casemate.fleet.verifier import TpmClock
from casemate.formats import ear, evidence
from casemate.formats.evidence import OWN_PCRS
from support import evidence as made
from support.evidence import FIRMWARE, FULL, NONCE, NOW, STACK, Signer, event, verified

SIGNER = Signer()
WANTED = frozenset(FIRMWARE) | OWN_PCRS
change = msgspec.structs.replace


def prove(given=None, *, signer=SIGNER, nonce=NONCE, known=None, wanted=WANTED):
    return verifier.prove(given or signer.answer(), nonce=nonce, known=known or signer.known, wanted=wanted)


def appraise(events=FULL, *, policy="default", firmware=FIRMWARE, known=None, now=NOW):
    policy = verified() if policy == "default" else policy
    proven = prove(SIGNER.answer(events, firmware=firmware), wanted=frozenset(firmware) | OWN_PCRS)
    return verifier.appraise(proven, policy=policy, known=known or SIGNER.known, now=now)


def check_of(*arguments, **keywords):
    with pytest.raises(UntrustedDataError) as caught:
        prove(*arguments, **keywords)
    return caught.value.check


def resigned(given, **changes):
    """Evidence of an attacker who has a key that signs anything: not the case of a real TPM."""
    attest = SIGNER.attest(NONCE, given.pcrs, **changes)
    return change(given, attest=attest, signature=SIGNER.sign(attest))


def test_an_honest_device_is_affirmed_at_the_highest_level():
    found = appraise()
    assert (found.status, found.level, found.reasons) == ("affirming", "L3", ())
    assert set(found.parts) == set(verifier.PARTS)


# --- what is refused before it is judged ------------------------------------------------------------------------------


def test_another_nonce_is_refused_in_the_message_and_in_the_quote():
    assert check_of(nonce=b"m" * 32) == "evidence-nonce"
    assert check_of(change(SIGNER.answer(nonce=b"m" * 32), nonce=NONCE)) == "quote-nonce"


def test_a_quote_by_another_key_is_refused():
    assert check_of(Signer().answer(), known=SIGNER.known) == "quote-signature"


def test_a_quote_by_a_key_that_signs_anything_is_refused():
    loose = Signer(attributes=made.AK_ATTRIBUTES & ~0x10000)
    assert check_of(signer=loose) == "ak-attributes"


def test_a_quote_of_a_key_below_another_hierarchy_is_refused():
    assert check_of(resigned(SIGNER.answer(), signer=b"\0\x0b" + bytes(32))) == "quote-signer"


@pytest.mark.parametrize("wanted", [WANTED | {4}, WANTED - {7}, frozenset(FIRMWARE)])
def test_a_selection_that_is_not_exactly_the_one_asked_for_is_refused(wanted):
    assert check_of(wanted=wanted) == "quote-selection"


def test_pcr_values_that_were_not_signed_are_refused():
    good = SIGNER.answer()
    assert check_of(change(good, pcrs={**good.pcrs, 0: bytes(32)})) == "quote-digest"


def test_a_log_may_not_speak_for_the_firmware():
    """A log that owns PCR 0 would explain any firmware away: the hole of our first prototype."""
    good = SIGNER.answer(STACK)
    foreign = change(evidence.record(len(STACK), event("model")), pcr=0)
    assert check_of(change(good, log=(*good.log, foreign))) == "log-pcr"


def test_a_pcr_that_is_not_there_is_not_zero():
    """An unknown PCR that defaults to zeros lets an attacker quote less: the other hole of the prototype."""
    given = SIGNER.answer(firmware={0: FIRMWARE[0]})
    assert check_of(given) == "quote-selection"


@pytest.mark.parametrize(
    ("tamper", "check"),
    [
        (lambda log: log[:-1], "log-replay"),
        (lambda log: (), "log-replay"),
        (lambda log: (log[1], log[0], *log[2:]), "log-order"),
        (lambda log: (*log, evidence.record(len(log), event("model", "extra"))), "log-replay"),
        (lambda log: (change(log[0], content=log[0].content.replace("agent", "axent")), *log[1:]), "log-digest"),
        (lambda log: (evidence.record(0, event("agent", digest="0" * 64)), *log[1:]), "log-replay"),
        (lambda log: (change(log[0], pcr=evidence.LOAD_PCR), *log[1:]), "log-event"),
    ],
)
def test_a_log_that_was_touched_is_refused(tamper, check):
    good = SIGNER.answer()
    assert check_of(change(good, log=tamper(good.log))) == check


def test_a_tpm_that_is_younger_than_it_was_is_refused():
    older = dataclasses.replace(SIGNER.known, last=TpmClock(SIGNER.resets, 0, SIGNER.clock))
    prove(known=older)
    for last in (TpmClock(SIGNER.resets + 1, 0, 0), TpmClock(SIGNER.resets, 0, SIGNER.clock + 1)):
        assert check_of(known=dataclasses.replace(SIGNER.known, last=last)) == "quote-clock"


@given(st.data())
def test_no_flipped_bit_of_a_quote_or_its_signature_is_accepted(data):
    good = SIGNER.answer()
    field = data.draw(st.sampled_from(["attest", "signature"]))
    raw = bytearray(getattr(good, field))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    check_of(change(good, **{field: bytes(raw)}))


@given(st.binary(max_size=300))
def test_random_bytes_are_not_evidence(raw):
    with pytest.raises(UntrustedDataError):
        evidence.parse(raw)


# --- what is judged ---------------------------------------------------------------------------------------------------


def test_without_a_policy_nothing_is_affirmed():
    found = appraise(policy=None)
    assert (found.status, found.level) == ("none", "L0")
    assert "no reference policy" in found.reasons[0]


@pytest.mark.parametrize("now", [NOW - 1000, NOW + 86_400])
def test_a_policy_outside_its_time_affirms_nothing(now):
    found = appraise(now=now)
    assert (found.status, found.level) == ("none", "L0")


def test_other_firmware_is_contraindicated():
    found = appraise(firmware={**FIRMWARE, 7: b"x" * 32})
    assert (found.status, found.level) == ("contraindicated", "L0")
    assert found.reasons == ("boot: PCR 7 holds a value the policy does not list",)


def test_an_altered_thing_is_contraindicated_and_an_unknown_one_is_a_warning():
    altered = appraise((*STACK, event("policy", digest="0" * 64)))
    assert (altered.status, altered.level) == ("contraindicated", "L0")
    unknown = appraise((*STACK, event("model", "another")))
    assert (unknown.status, unknown.level) == ("warning", "L2")
    assert unknown.reasons == ("model: model another is unknown to the policy",)


@pytest.mark.parametrize("left_out", STACK)
def test_a_required_event_that_is_missing_is_not_affirmed(left_out):
    found = appraise(tuple(one for one in FULL if one != left_out))
    assert (found.status, found.level) == ("none", "L0")
    assert f"no {left_out.kind} was measured" in found.reasons[0]


def test_a_good_event_does_not_excuse_a_bad_one():
    assert appraise((*FULL, event("agent", digest="0" * 64))).status == "contraindicated"


def test_a_tpm_without_a_known_maker_or_a_silent_firmware_is_no_more_than_hardware_bound():
    unknown = appraise(known=dataclasses.replace(SIGNER.known, trusted=False))
    assert (unknown.status, unknown.level) == ("affirming", "L2")
    silent = dict.fromkeys(FIRMWARE, bytes(32))
    found = appraise(firmware=silent, policy=verified(firmware=silent))
    assert (found.status, found.level) == ("affirming", "L2")
    assert "firmware measured nothing" in found.reasons[0]


@given(st.lists(st.sampled_from([*FULL, event("model", "x"), event("guard", digest="1" * 64)]), unique=True))
def test_affirming_means_that_all_is_listed_and_all_required_is_there(events):
    found = appraise(tuple(events))
    good = set(events) <= set(FULL) and set(STACK) <= set(events)
    assert (found.status == "affirming") is good


def test_refused_evidence_is_contraindicated():
    found = verifier.refused("quote-nonce", "the quote answers another challenge")
    assert (found.status, found.level) == ("contraindicated", "L0")


def test_a_result_ends_in_fifteen_minutes_or_with_its_policy():
    found = appraise()
    asked = {"device": "d", "nonce": NONCE, "certificate_digest": bytes(32), "now": NOW}
    assert verifier.result(found, until=NOW + 10_000, **asked).exp == NOW + ear.MAX_LIFE
    assert verifier.result(found, until=NOW + 60, **asked).exp == NOW + 60


# --- learning ---------------------------------------------------------------------------------------------------------


def test_a_learned_policy_affirms_the_device_it_was_learned_from_and_no_other():
    proven = prove()
    policy = learning.propose(proven, name="default", version=1, now=NOW)
    assert set(policy.pcrs) == set(FIRMWARE)
    assert {(one.kind, one.name, one.digest) for one in policy.events} == {
        (one.kind, one.name, one.digest) for one in FULL
    }


def test_nothing_is_learned_from_a_device_that_measured_nothing():
    with pytest.raises(UntrustedDataError) as caught:
        learning.propose(prove(SIGNER.answer(())), name="default", version=1, now=NOW)
    assert caught.value.check == "policy-form"
