"""Commands and answers: what a device obeys, and everything it does not."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.ecdsa import EcKey
from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import envelope
from casemate.formats.envelope import Answer, Command

KEY = SigningKey.generate()
OTHER = SigningKey.generate()
DEVICE_KEY = EcKey.generate()
FLEET = "ab" * 16
DEVICE = "00000000-0000-4000-8000-00000000000a"
NOW = 1_790_000_000


def command(**changes) -> Command:
    good = Command(1, FLEET, DEVICE, 5, "quarantine", NOW, NOW + 3600, "seen twice")
    return msgspec.structs.replace(good, **changes)


def verify(raw, *, after=4, earliest=NOW, public=KEY.public, fleet=FLEET, device=DEVICE):
    return envelope.verify_command(raw, public=public, fleet=fleet, device=device, after=after, earliest=earliest)


def refused(raw, **context) -> str:
    with pytest.raises(UntrustedDataError) as caught:
        verify(raw, **context)
    return caught.value.check


def forged(payload: bytes, key=KEY) -> bytes:
    return envelope.seal(payload, envelope.COMMAND_TYPE, key)


def test_a_command_that_fits_is_obeyed():
    found = verify(envelope.sign_command(command(), KEY))
    assert found.command == command()
    assert found.verb is envelope.Verb.QUARANTINE


@pytest.mark.parametrize(
    ("change", "context", "check"),
    [
        ({}, {"after": 5}, "command-sequence"),  # replayed
        ({"sequence": 3}, {}, "command-sequence"),  # reordered: a newer one was obeyed
        ({"device": "00000000-0000-4000-8000-00000000000b"}, {}, "command-device"),
        ({"fleet": "cd" * 16}, {}, "command-fleet"),
        ({}, {"earliest": NOW + 3601}, "command-expired"),
        ({"verb": "run"}, {}, "command-verb"),
        ({"expires": NOW}, {}, "command-form"),
        ({"expires": NOW + envelope.MAX_LIFE + 1}, {}, "command-form"),
        ({"issued": 0, "expires": NOW + 60}, {}, "command-form"),
        ({}, {"public": OTHER.public}, "envelope-signature"),
        ({}, {"public": bytes(32)}, "envelope-signature"),
    ],
)
def test_a_command_that_does_not_fit_is_refused_by_the_check_for_it(change, context, check):
    assert refused(envelope.sign_command(command(**change), KEY), **context) == check


def test_a_device_whose_clock_is_two_years_off_obeys_and_still_refuses_what_is_old():
    """Only `earliest` counts: nothing here asks the machine for the time."""
    raw = envelope.sign_command(command(), KEY)
    years = 2 * 365 * 86_400
    assert verify(raw, earliest=NOW - years).command.sequence == 5
    assert refused(raw, earliest=NOW + years) == "command-expired"


@given(st.integers(0, 1 << 20), st.integers(1, 1 << 20), st.integers(-100, 100))
def test_obeyed_exactly_when_newer_and_not_expired(after, sequence, late):
    raw = envelope.sign_command(command(sequence=sequence), KEY)
    earliest = NOW + 3600 + late
    if sequence > after and late <= 0:
        assert verify(raw, after=after, earliest=earliest).command.sequence == sequence
    else:
        assert refused(raw, after=after, earliest=earliest) in {"command-sequence", "command-expired"}


@given(st.binary(max_size=300))
def test_random_bytes_are_no_command(raw):
    assert refused(raw) == "envelope-form"


@given(st.binary(max_size=300))
def test_random_bytes_under_a_good_signature_are_no_command(payload):
    assert refused(forged(payload)) == "command-form"


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_byte_passes(place, change):
    raw = bytearray(envelope.sign_command(command(), KEY))
    raw[place % len(raw)] ^= change
    try:
        found = verify(bytes(raw))
    except UntrustedDataError:
        return
    assert found.command == command()  # only spelling that does not matter, as in a key's name, may differ


def test_a_second_spelling_of_a_command_is_refused():
    payload = json.dumps(msgspec.to_builtins(command()), indent=1).encode()
    assert refused(forged(payload)) == "command-form"


def test_an_unknown_field_is_refused():
    payload = {**msgspec.to_builtins(command()), "shell": "reboot"}
    assert refused(forged(msgspec.json.encode(payload, order="sorted"))) == "command-form"


def test_a_signature_for_another_kind_of_envelope_does_not_count():
    payload = msgspec.json.encode(command(), order="sorted")
    raw = envelope.seal(payload, envelope.ANSWER_TYPE, KEY)
    assert refused(raw) == "envelope-form"
    assert refused(raw.replace(b".answer.", b".command.")) == "envelope-signature"


def test_two_signatures_and_too_many_bytes_are_refused():
    body = json.loads(envelope.sign_command(command(), KEY))
    body["signatures"] *= 2
    assert refused(json.dumps(body).encode()) == "envelope-form"
    assert refused(b" " * envelope.LIMIT + envelope.sign_command(command(), KEY)) == "envelope-form"


def test_base64_has_one_spelling():
    body = json.loads(envelope.sign_command(command(), KEY))
    body["payload"] = base64.urlsafe_b64encode(base64.b64decode(body["payload"])).decode() + "\n"
    assert refused(json.dumps(body).encode()) == "envelope-form"


# --- answers ----------------------------------------------------------------------------------------------------------


def answer(raw: bytes, **changes) -> Answer:
    digest = envelope.parse(raw, envelope.COMMAND_TYPE).digest
    good = Answer(1, FLEET, DEVICE, 5, "quarantine", digest, "done", NOW, facts={"network_fenced": True})
    return msgspec.structs.replace(good, **changes)


def judge(raw, signed, public=DEVICE_KEY.public, device=DEVICE):
    return envelope.verify_answer(signed, public=public, device=device, command=raw)


def test_an_answer_proves_what_its_device_said_about_one_command():
    raw = envelope.sign_command(command(), KEY)
    said = answer(raw)
    assert judge(raw, envelope.sign_answer(envelope.encode_answer(said), DEVICE_KEY)).answer == said


def test_an_answer_of_another_device_to_another_command_or_unsigned_is_refused():
    raw, later = envelope.sign_command(command(), KEY), envelope.sign_command(command(sequence=6), KEY)
    signed = envelope.sign_answer(envelope.encode_answer(answer(raw)), DEVICE_KEY)
    for bad in (
        lambda: judge(later, signed),
        lambda: judge(raw, signed, device="00000000-0000-4000-8000-00000000000b"),
        lambda: judge(raw, signed, public=EcKey.generate().public),
        lambda: judge(raw, envelope.sign_command(command(), KEY)),
        lambda: judge(raw, envelope.sign_answer(b"{}", DEVICE_KEY)),
    ):
        with pytest.raises(UntrustedDataError):
            bad()
