"""TPM structures are read strictly: what a TPM wrote is understood, everything else is refused by name."""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto import tpm as crypto
from casemate.crypto.tpm import sized
from casemate.errors import UntrustedDataError
from casemate.formats import tpm

KEY = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
AK_ATTRIBUTES = 0x50072
EK_ATTRIBUTES = 0x300B2


def ecc_public(attributes=AK_ATTRIBUTES, key=KEY, curve=3, symmetric=b"\x00\x10", scheme=b"\x00\x18\x00\x0b"):
    numbers = key.public_key().public_numbers()
    width = (key.curve.key_size + 7) // 8
    head = struct.pack(">HHI", 0x23, 0x0B, attributes) + sized(b"") + symmetric + scheme
    point = sized(numbers.x.to_bytes(width, "big")) + sized(numbers.y.to_bytes(width, "big"))
    return head + struct.pack(">HH", curve, 0x10) + point


def rsa_public(attributes=EK_ATTRIBUTES, exponent=0):
    modulus = RSA.public_key().public_numbers().n.to_bytes(256, "big")
    head = struct.pack(">HHI", 1, 0x0B, attributes) + sized(bytes(32)) + struct.pack(">HHH", 6, 128, 0x43)
    return head + struct.pack(">HHI", 0x10, 2048, exponent) + sized(modulus)


def quote(nonce=b"n" * 32, *, magic=0xFF544347, kind=0x8018, banks=1, bank=0x0B, bitmap=b"\x81\x40\x00", safe=1):
    head = struct.pack(">IH", magic, kind) + sized(b"\0\x0b" + bytes(32)) + sized(nonce)
    clock = struct.pack(">QIIBQ", 1000, 3, 0, safe, 7)
    return head + clock + struct.pack(">IHB", banks, bank, len(bitmap)) + bitmap + sized(b"d" * 32)


def signature(message, key=KEY):
    r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return struct.pack(">HH", 0x18, 0x0B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))


def refusal(parse, data):
    with pytest.raises(UntrustedDataError) as caught:
        parse(data)
    return caught.value.check


WHOLE = [
    (tpm.parse_public, ecc_public()),
    (tpm.parse_public, rsa_public()),
    (tpm.parse_quote, quote()),
    (tpm.parse_signature, signature(b"m")),
]


def test_a_public_area_gives_its_key_and_its_name():
    found = tpm.parse_public(ecc_public())
    assert crypto.spki(found.key) == crypto.spki(KEY.public_key())
    assert found.name[:2] == b"\0\x0b"
    assert len(found.name) == 34
    assert tpm.parse_public(rsa_public()).symmetric_bits == 128


def test_a_quote_gives_its_nonce_its_pcrs_and_its_counts():
    found = tpm.parse_quote(quote())
    assert (found.extra, found.pcrs) == (b"n" * 32, {0, 7, 14})
    assert (found.clock, found.reset_count, found.safe) == (1000, 3, True)


def test_a_signature_verifies_over_its_message_and_no_other():
    found = tpm.parse_signature(signature(b"m"))
    assert tpm.is_signed(KEY.public_key(), found, b"m")
    assert not tpm.is_signed(KEY.public_key(), found, b"n")
    assert not tpm.is_signed(RSA.public_key(), found, b"m")


@pytest.mark.parametrize(("parse", "data"), WHOLE, ids=["ecc", "rsa", "quote", "signature"])
def test_every_truncation_is_refused(parse, data):
    for length in range(len(data)):
        refusal(parse, data[:length])


@given(st.sampled_from(WHOLE), st.binary(min_size=1, max_size=40))
def test_trailing_bytes_are_refused(whole, tail):
    parse, data = whole
    refusal(parse, data + tail)


@given(st.sampled_from([parse for parse, _ in WHOLE]), st.binary(max_size=400))
def test_random_bytes_are_refused_and_never_crash(parse, data):
    refusal(parse, data)


@given(st.sampled_from(WHOLE), st.data())
def test_a_changed_byte_is_refused_or_read_as_something_else(whole, data):
    parse, good = whole
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    try:
        assert parse(bytes(bad)) != parse(good)
    except UntrustedDataError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        quote(magic=0xFF544348),  # not made by a TPM
        quote(kind=0x8014),  # an NV certification, not a quote
        quote(banks=2),
        quote(banks=0),
        quote(bank=0x04),  # SHA-1
        quote(bitmap=bytes(4)),
        quote(safe=2),
    ],
)
def test_what_is_not_a_quote_over_the_sha256_bank_is_refused(data):
    assert refusal(tpm.parse_quote, data) == "tpm-attest"


@pytest.mark.parametrize(
    ("data", "check"),
    [
        (ecc_public(curve=0x10), "tpm-key"),
        (ecc_public(symmetric=b"\x00\x0a"), "tpm-public"),
        (rsa_public(exponent=3), "tpm-key"),
        (ecc_public().replace(KEY.public_key().public_numbers().y.to_bytes(32, "big"), bytes(32)), "tpm-key"),
    ],
    ids=["curve", "symmetric", "exponent", "off-curve"],
)
def test_keys_that_are_none_are_refused(data, check):
    assert refusal(tpm.parse_public, data) == check


@pytest.mark.parametrize("bit", [tpm.FIXED_TPM, tpm.FIXED_PARENT, tpm.SENSITIVE_DATA_ORIGIN, tpm.RESTRICTED, tpm.SIGN])
def test_an_attestation_key_lacking_one_attribute_is_refused(bit):
    tpm.check_attestation_key(tpm.parse_public(ecc_public()))
    with pytest.raises(UntrustedDataError, match="restricted signing key"):
        tpm.check_attestation_key(tpm.parse_public(ecc_public(AK_ATTRIBUTES & ~bit)))


def test_an_attestation_key_that_decrypts_is_refused():
    with pytest.raises(UntrustedDataError) as caught:
        tpm.check_attestation_key(tpm.parse_public(ecc_public(AK_ATTRIBUTES | tpm.DECRYPT)))
    assert caught.value.check == "ak-attributes"


def test_an_endorsement_key_must_be_a_restricted_storage_key():
    tpm.check_endorsement_key(tpm.parse_public(rsa_public()))
    for attributes in (EK_ATTRIBUTES & ~tpm.RESTRICTED, EK_ATTRIBUTES & ~tpm.DECRYPT, EK_ATTRIBUTES | tpm.SIGN):
        with pytest.raises(UntrustedDataError) as caught:
            tpm.check_endorsement_key(tpm.parse_public(rsa_public(attributes)))
        assert caught.value.check == "ek-attributes"
