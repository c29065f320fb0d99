"""What a log asks of its witness, and the cosignature it gets."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto import signing
from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import tlog
from casemate.formats.tlog import AddCheckpoint, Checkpoint, VerifierKey

LOG, WITNESS = SigningKey.generate(), SigningKey.generate()
NAME = "fleet/witness"
VKEY = VerifierKey(NAME, WITNESS.public)
NOTE = Checkpoint("casemate/0123456789abcdef", 7, bytes(32)).sign(LOG)
TEXT = NOTE.partition(b"\n\n")[0] + b"\n"


@given(st.integers(0, 1 << 60), st.lists(st.binary(min_size=32, max_size=32), max_size=63))
def test_a_request_comes_back_as_it_was(old, proof):
    asked = AddCheckpoint(old, tuple(proof), NOTE)
    assert tlog.parse_add_checkpoint(asked.encode()) == asked


@given(st.binary(max_size=400))
def test_random_bytes_are_no_request(data):
    with pytest.raises(UntrustedDataError):
        tlog.parse_add_checkpoint(data)


@pytest.mark.parametrize(
    "body",
    [
        b"old -1\n\n" + NOTE,
        b"old 01\n\n" + NOTE,
        b"old 1\n" + NOTE,
        b"old 1\nAAAA\n\n" + NOTE,
        b"old 1\n" + b"\n".join([base64.b64encode(bytes(32))] * 64) + b"\n\n" + NOTE,
        b"old 1\n\n" + b"x" * (1 << 18),
    ],
)
def test_a_request_of_another_form_is_refused(body):
    with pytest.raises(UntrustedDataError) as caught:
        tlog.parse_add_checkpoint(body)
    assert caught.value.check == "witness-request"


def test_a_cosignature_is_what_the_standard_says():
    """Recomputed here from the text of c2sp.org/tlog-cosignature, not with our functions."""
    line = tlog.cosign(NOTE, NAME, WITNESS, 1_700_000_000)
    dash, name, blob = line.decode().rstrip("\n").split(" ")
    raw = base64.b64decode(blob)
    assert (dash, name) == ("\u2014", NAME)
    assert raw[:4] == hashlib.sha256(NAME.encode() + b"\n\x04" + WITNESS.public).digest()[:4]
    assert int.from_bytes(raw[4:12], "big") == 1_700_000_000
    assert signing.verify(WITNESS.public, raw[12:], b"cosignature/v1\ntime 1700000000\n" + TEXT)


def test_a_cosigned_checkpoint_still_opens_with_the_logs_key_and_says_when():
    note = NOTE + tlog.cosign(NOTE, NAME, WITNESS, 5) + tlog.cosign(NOTE, NAME, WITNESS, 9)
    assert tlog.open_checkpoint(note, [VerifierKey("casemate/0123456789abcdef", LOG.public)]).size == 7
    assert tlog.cosigned_at(note, VKEY) == 9


def test_a_cosignature_by_another_of_another_text_or_changed_is_refused():
    other = VerifierKey(NAME, SigningKey.generate().public)
    line = tlog.cosign(NOTE, NAME, WITNESS, 5)
    grown = Checkpoint("casemate/0123456789abcdef", 8, bytes(32)).sign(LOG)
    for note, witness in ((NOTE, VKEY), (NOTE + line, other), (grown + line, VKEY)):
        with pytest.raises(UntrustedDataError) as caught:
            tlog.cosigned_at(note, witness)
        assert caught.value.check == "cosignature"
