"""What a verifier needs of a TPM's cryptography, without a TPM: names, MakeCredential, signatures.

Sources: TCG TPM 2.0 Library, part 1 (names: 16; KDFa and KDFe: 11.4.10; credentials: 24; RSA and ECC key exchange:
annexes B.10.4 and C.6.1). Bytes of TPM structures become objects in `formats.tpm`; this module gets their fields.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.errors import UntrustedDataError

SHA256: Final = 0x000B
SHA384: Final = 0x000C
P256: Final = 0x0003
P384: Final = 0x0004
RSASSA: Final = 0x0014
RSAPSS: Final = 0x0016
ECDSA: Final = 0x0018
SECRET_LIMIT: Final = 32
"""Bytes a credential may carry: no longer than the digest of any EK's name algorithm."""

HASH_NAMES: Final = {SHA256: "sha256", SHA384: "sha384"}
_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {SHA256: hashes.SHA256(), SHA384: hashes.SHA384()}
_CURVES: Final[dict[int, ec.EllipticCurve]] = {P256: ec.SECP256R1(), P384: ec.SECP384R1()}
_RSA_BITS: Final = (2048, 3072, 4096)
_RSA_EXPONENT: Final = 65537
_AES_BITS: Final = (128, 256)

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def sized(data: bytes) -> bytes:
    """Return a TPM2B: *data* behind its length (u16, big-endian)."""
    return struct.pack(">H", len(data)) + data


def object_name(name_algorithm: int, public_area: bytes) -> bytes:
    """Return the Name of an object: its hash algorithm and the hash of its TPMT_PUBLIC."""
    return struct.pack(">H", name_algorithm) + hashlib.new(HASH_NAMES[name_algorithm], public_area).digest()


def rsa_key(modulus: bytes, exponent: int) -> PublicKey:
    """Return the RSA key of a TPMT_PUBLIC (exponent 0 stands for 65537).

    Raises:
        UntrustedDataError: `tpm-key` an odd size or exponent.

    """
    number = int.from_bytes(modulus, "big")
    if number.bit_length() not in _RSA_BITS or (exponent or _RSA_EXPONENT) != _RSA_EXPONENT:
        raise UntrustedDataError("the TPM's RSA key has an unusual size or exponent", check="tpm-key")
    try:
        return rsa.RSAPublicNumbers(_RSA_EXPONENT, number).public_key()
    except ValueError as error:
        raise UntrustedDataError("the TPM's RSA key is not one", check="tpm-key") from error


def ec_key(curve: int, x: bytes, y: bytes) -> PublicKey:
    """Return the key of a TPMT_PUBLIC on P-256 or P-384.

    Raises:
        UntrustedDataError: `tpm-key` another curve, or a point that is not on it.

    """
    known = _CURVES.get(curve)
    if known is None:
        raise UntrustedDataError("the TPM's key is on an unknown curve", check="tpm-key")
    try:
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), known).public_key()
    except ValueError as error:
        raise UntrustedDataError("the TPM's key is not a point of its curve", check="tpm-key") from error


def spki(key: PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo (DER) of *key*: how keys are compared and stored."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def is_signed_by(key: PublicKey, scheme: int, hash_algorithm: int, parts: tuple[bytes, ...], message: bytes) -> bool:
    """Return whether a TPMT_SIGNATURE over *message* was made with *key*. *parts*: r and s, or the one RSA value."""
    algorithm = _HASHES.get(hash_algorithm)
    if algorithm is None:
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if scheme != ECDSA:
                return False
            r, s = (int.from_bytes(part, "big") for part in parts)
            key.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(algorithm))
        else:
            if scheme not in {RSASSA, RSAPSS}:
                return False
            pad = (
                padding.PKCS1v15()
                if scheme == RSASSA
                else padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)
            )
            key.verify(parts[0], message, pad, algorithm)
    except InvalidSignature:
        return False
    return True


def kdfa(hash_algorithm: int, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """Return KDFa (SP 800-108, counter mode) of one block: *bits* is at most the digest's.

    Raises:
        ValueError: more than one block was asked for.

    """
    name = HASH_NAMES[hash_algorithm]
    if bits > hashlib.new(name).digest_size * 8:
        raise ValueError("one block of KDFa is what is needed, and all there is")
    block = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.new(key, block, name).digest()[: bits // 8]


def make_credential(
    key: PublicKey, name_algorithm: int, symmetric_bits: int, object_name: bytes, secret: bytes
) -> tuple[bytes, bytes]:
    """Encrypt *secret* so that only the TPM that has both *key* (an EK) and the object called *object_name* opens it.

    Returns TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, as `TPM2_ActivateCredential` takes them. *name_algorithm* and
    *symmetric_bits* are those of the EK's TPMT_PUBLIC.

    Raises:
        ValueError: the secret is empty or over `SECRET_LIMIT`, or the EK's parameters are not known ones.

    """
    if not 0 < len(secret) <= SECRET_LIMIT or name_algorithm not in _HASHES or symmetric_bits not in _AES_BITS:
        raise ValueError("not a credential that a TPM opens")
    seed, encrypted = _share_seed(key, name_algorithm)
    storage = kdfa(name_algorithm, seed, b"STORAGE", object_name, symmetric_bits)
    integrity_bits = _HASHES[name_algorithm].digest_size * 8
    integrity = kdfa(name_algorithm, seed, b"INTEGRITY", b"", integrity_bits)
    cipher = Cipher(algorithms.AES(storage), CFB(bytes(16))).encryptor()
    identity = cipher.update(sized(secret)) + cipher.finalize()
    tag = hmac.new(integrity, identity + object_name, HASH_NAMES[name_algorithm]).digest()
    return sized(sized(tag) + identity), encrypted


def _share_seed(key: PublicKey, name_algorithm: int) -> tuple[bytes, bytes]:
    """Return a fresh seed and the TPM2B_ENCRYPTED_SECRET that brings it to the holder of *key*."""
    algorithm = _HASHES[name_algorithm]
    if isinstance(key, rsa.RSAPublicKey):
        seed = os.urandom(algorithm.digest_size)
        return seed, sized(key.encrypt(seed, padding.OAEP(padding.MGF1(algorithm), algorithm, b"IDENTITY\0")))
    ephemeral = ec.generate_private_key(key.curve)
    width = (key.curve.key_size + 7) // 8
    mine, theirs = ephemeral.public_key().public_numbers(), key.public_numbers()
    x, y = mine.x.to_bytes(width, "big"), mine.y.to_bytes(width, "big")
    shared = ephemeral.exchange(ec.ECDH(), key)
    block = struct.pack(">I", 1) + shared + b"IDENTITY\0" + x + theirs.x.to_bytes(width, "big")  # KDFe
    return hashlib.new(HASH_NAMES[name_algorithm], block).digest(), sized(sized(x) + sized(y))
