"""Ed25519 against RFC 8032, and keys derived beside it."""

from __future__ import annotations

import pytest

from casemate.crypto import signing
from casemate.crypto.secret import Secret

# RFC 8032, section 7.1, test 2
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_rfc_8032():
    key = signing.SigningKey(Secret(SEED))
    assert key.public == PUBLIC
    assert key.sign(b"\x72") == SIGNATURE
    assert key.seed() == SEED
    assert signing.verify(PUBLIC, SIGNATURE, b"\x72")


@pytest.mark.parametrize(
    ("public", "signature", "message"),
    [
        (PUBLIC, SIGNATURE, b"\x73"),
        (PUBLIC, SIGNATURE[:-1] + b"\x01", b"\x72"),
        (PUBLIC, SIGNATURE[:-1], b"\x72"),
        (bytes(32), SIGNATURE, b"\x72"),
        (PUBLIC[:-1], SIGNATURE, b"\x72"),
        (PUBLIC, b"", b"\x72"),
    ],
)
def test_what_does_not_fit_is_false_not_an_error(public, signature, message):
    assert not signing.verify(public, signature, message)


def test_derived_keys_differ_by_label_and_key():
    one, two = signing.SigningKey(Secret(SEED)), signing.SigningKey.generate()
    assert one.derive("a").reveal() == one.derive("a").reveal()
    assert one.derive("a").reveal() != one.derive("b").reveal() != two.derive("b").reveal()
    assert one.derive("a").reveal() != SEED


def test_a_seed_has_32_bytes():
    with pytest.raises(ValueError, match="32 bytes"):
        signing.SigningKey(Secret(b"short"))
