"""Attestation results: short-lived, one algorithm, one spelling; readable by libraries we did not write."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey

from casemate.crypto.ecdsa import EcKey
from casemate.errors import UntrustedDataError
from casemate.formats import ear
from casemate.formats.ear import SubModule, TrustVector

KEY = EcKey.generate()
NOW = 1_800_000_000


def result(*, life=900, status="affirming"):
    return ear.Ear(
        eat_profile=ear.PROFILE,
        iat=NOW,
        exp=NOW + life,
        verifier=ear.Verifier("casemate", "1"),
        submods={"boot": SubModule(status, TrustVector(hardware=2), "default:1")},
        eat_nonce=ear.nonce_claim(b"n" * 32),
        sub="device",
        cnf=ear.confirmation(bytes(32)),
        level="L3",
    )


def check_of(token, now=NOW, key=KEY):
    with pytest.raises(UntrustedDataError) as caught:
        ear.verify(token, key.public, now)
    return caught.value.check


def test_another_library_reads_and_verifies_it():
    token = ear.sign(result(), KEY)
    read = jwt.decode(token, ECKey.import_key(KEY.public.pem().decode()), algorithms=["ES256"])
    assert read.claims["submods"]["boot"]["ear.status"] == "affirming"
    assert read.claims["submods"]["boot"]["ear.trustworthiness-vector"] == {"hardware": 2}
    assert read.claims["ear.verifier-id"]["developer"] == "casemate"
    assert read.claims["cnf"]["x5t#S256"] == base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")


def test_it_is_read_back_while_it_lives_and_not_after():
    token = ear.sign(result(), KEY)
    assert ear.verify(token, KEY.public, NOW + 899) == result()
    assert check_of(token, NOW + 900) == "ear-expired"
    assert check_of(token, NOW - 1) == "ear-expired"


@pytest.mark.parametrize("life", [901, 0, -1])
def test_a_result_that_lives_too_long_is_not_made_and_not_believed(life):
    with pytest.raises(ValueError, match="fifteen"):
        ear.sign(result(life=life), KEY)
    header, _, _ = ear.sign(result(), KEY).split(".")
    claims = base64.urlsafe_b64encode(ear._encoder.encode(result(life=life))).decode().rstrip("=")
    signature = base64.urlsafe_b64encode(KEY.sign_raw(f"{header}.{claims}".encode())).decode().rstrip("=")
    assert check_of(f"{header}.{claims}.{signature}") == "ear-expired"


@pytest.mark.parametrize(
    "header", [{"alg": "none"}, {"alg": "HS256", "typ": "JWT"}, {"alg": "ES256", "typ": "JWT", "kid": "x"}]
)
def test_no_other_algorithm_and_no_other_header_is_known(header):
    _, claims, signature = ear.sign(result(), KEY).split(".")
    raw = base64.urlsafe_b64encode(json.dumps(header, separators=(",", ":")).encode()).decode().rstrip("=")
    assert check_of(f"{raw}.{claims}.{signature}") == "ear-form"
    assert check_of(f"{raw}.{claims}.") == "ear-form"


def test_another_fleets_result_is_refused():
    assert check_of(ear.sign(result(), EcKey.generate())) == "ear-signature"


@given(st.text(max_size=200))
def test_random_text_is_refused(text):
    assert check_of(text).startswith("ear-")


@given(st.data())
def test_no_changed_character_is_accepted(data):
    token = bytearray(ear.sign(result(), KEY).encode())
    at = data.draw(st.integers(0, len(token) - 1))
    token[at] = data.draw(st.sampled_from([byte for byte in b"AZaz09-_.!" if byte != token[at]]))
    check_of(token.decode())


def test_the_worst_part_decides():
    assert ear.worst(["affirming", "warning", "none"]) == "none"
    assert ear.worst(["none", "contraindicated"]) == "contraindicated"
    assert ear.worst([]) == "none"
