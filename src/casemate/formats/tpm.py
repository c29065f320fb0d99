"""Structures of a TPM as they travel: TPMT_PUBLIC, TPMS_ATTEST (a quote) and TPMT_SIGNATURE.

Integers are big-endian; a "2B" is a u16 length and that many bytes. Nothing is read leniently: a structure that ends
early, goes on after its end or has a value this project has no use for is refused. Source: TCG TPM 2.0 Library, part 2
(12.2.4, 10.12.8, 11.3.4).
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from typing import Final

from casemate.crypto import tpm
from casemate.crypto.tpm import PublicKey
from casemate.errors import UntrustedDataError

LIMIT: Final = 4096
PCR_COUNT: Final = 24
DIGEST_BYTES: Final = 32
_RSA: Final = 0x0001
_ECC: Final = 0x0023
_AES: Final = 0x0006
_CFB: Final = 0x0043
_NULL: Final = 0x0010
_MAGIC: Final = 0xFF544347
_QUOTE: Final = 0x8018
_ENDORSEMENT: Final = struct.pack(">I", 0x4000000B)

FIXED_TPM: Final = 0x2
FIXED_PARENT: Final = 0x10
SENSITIVE_DATA_ORIGIN: Final = 0x20
RESTRICTED: Final = 0x10000
DECRYPT: Final = 0x20000
SIGN: Final = 0x40000
_MADE_IN_THIS_TPM: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED


@dataclasses.dataclass(frozen=True)
class TpmPublic:
    """A public area. *symmetric_bits* is 0 for a key that is not a storage key; *name* is the object's Name."""

    name_algorithm: int
    attributes: int
    auth_policy: bytes
    symmetric_bits: int
    key: PublicKey
    name: bytes


@dataclasses.dataclass(frozen=True)
class Quote:
    """A TPMS_ATTEST of type quote: it says what PCRs held, when, for which *extra* data (the nonce)."""

    qualified_signer: bytes
    extra: bytes
    clock: int  # milliseconds this TPM was powered, ever
    reset_count: int  # power cycles
    restart_count: int
    safe: bool
    firmware: int
    pcrs: frozenset[int]  # of the SHA-256 bank
    digest: bytes


@dataclasses.dataclass(frozen=True)
class TpmSignature:
    """*parts*: r and s of ECDSA, or the one value of RSA."""

    scheme: int
    hash_algorithm: int
    parts: tuple[bytes, ...]


@functools.lru_cache(maxsize=4096)
def parse_public(data: bytes) -> TpmPublic:
    """Read a TPMT_PUBLIC of an RSA or ECC key. A device shows the same key every time: it is kept.

    Raises:
        UntrustedDataError: `tpm-public`, or `tpm-key` when the key itself is none.

    """
    reader = _Reader(data, "tpm-public")
    kind, name_algorithm, attributes = reader.u16(), reader.u16(), reader.u32()
    if name_algorithm not in tpm.HASH_NAMES:
        raise reader.refusal("an unknown name algorithm")
    auth_policy = reader.sized(64)
    symmetric_bits = _symmetric(reader)
    if reader.u16() != _NULL:
        reader.u16()  # the scheme's hash
    if kind == _RSA:
        reader.u16()  # bits: the modulus says it too
        exponent = reader.u32()
        key = tpm.rsa_key(reader.sized(512), exponent)
    elif kind == _ECC:
        curve = reader.u16()
        if reader.u16() != _NULL:
            reader.u16()  # the key derivation's hash
        key = tpm.ec_key(curve, reader.sized(66), reader.sized(66))
    else:
        raise reader.refusal("neither an RSA nor an ECC key")
    reader.end()
    return TpmPublic(
        name_algorithm, attributes, auth_policy, symmetric_bits, key, tpm.object_name(name_algorithm, data)
    )


def check_attestation_key(public: TpmPublic) -> None:
    """Require what makes a quote worth something: the key cannot leave its TPM and signs only what the TPM made.

    Raises:
        UntrustedDataError: `ak-attributes`.

    """
    wanted = _MADE_IN_THIS_TPM | SIGN
    if public.attributes & (wanted | DECRYPT) != wanted or public.name_algorithm != tpm.SHA256:
        raise UntrustedDataError(
            "the attestation key is not a restricted signing key of a TPM",
            check="ak-attributes",
            hint="enrol again: the device makes the right key itself",
        )


def check_endorsement_key(public: TpmPublic) -> None:
    """Require a restricted storage key that cannot leave its TPM: only such a key activates credentials safely.

    Raises:
        UntrustedDataError: `ek-attributes`.

    """
    wanted = _MADE_IN_THIS_TPM | DECRYPT
    if public.attributes & (wanted | SIGN) != wanted or not public.symmetric_bits:
        raise UntrustedDataError("the endorsement key is not a restricted storage key", check="ek-attributes")


def qualified_name(public: TpmPublic) -> bytes:
    """Return the qualified Name of a primary key of the endorsement hierarchy (part 1, 16: parents are hashed in)."""
    return _below_endorsement(public.name_algorithm, public.name)


@functools.lru_cache(maxsize=4096)
def _below_endorsement(name_algorithm: int, name: bytes) -> bytes:
    return tpm.object_name(name_algorithm, _ENDORSEMENT + name)


def parse_quote(data: bytes) -> Quote:
    """Read a TPMS_ATTEST that must be a quote over PCRs of the SHA-256 bank alone.

    Raises:
        UntrustedDataError: `tpm-attest`.

    """
    reader = _Reader(data, "tpm-attest")
    if reader.fields(_ATTEST) != (_MAGIC, _QUOTE):
        raise reader.refusal("not a quote made by a TPM")
    signer, extra = reader.sized(68), reader.sized(64)
    clock, resets, restarts, safe, firmware, banks, bank, size = reader.fields(_CLOCK_AND_BANK)
    if safe > 1 or banks != 1 or bank != tpm.SHA256:
        raise reader.refusal("the quote is not over the SHA-256 bank alone")
    bitmap = int.from_bytes(reader.take(_at_most(reader, size, PCR_COUNT // 8)), "little")
    digest = reader.sized(DIGEST_BYTES)
    reader.end()
    if len(digest) != DIGEST_BYTES:
        raise reader.refusal("a digest of another length")
    return Quote(signer, extra, clock, resets, restarts, bool(safe), firmware, _selected(bitmap), digest)


@functools.lru_cache(maxsize=64)
def _selected(bitmap: int) -> frozenset[int]:
    return frozenset(index for index in range(PCR_COUNT) if bitmap >> index & 1)


def parse_signature(data: bytes) -> TpmSignature:
    """Read a TPMT_SIGNATURE: ECDSA, RSASSA or RSAPSS.

    Raises:
        UntrustedDataError: `tpm-signature`.

    """
    reader = _Reader(data, "tpm-signature")
    scheme, algorithm = reader.u16(), reader.u16()
    if algorithm not in tpm.HASH_NAMES:
        raise reader.refusal("an unknown hash")
    if scheme == tpm.ECDSA:
        parts: tuple[bytes, ...] = (reader.sized(66), reader.sized(66))
    elif scheme in {tpm.RSASSA, tpm.RSAPSS}:
        parts = (reader.sized(512),)
    else:
        raise reader.refusal("an unknown scheme")
    reader.end()
    return TpmSignature(scheme, algorithm, parts)


def is_signed(key: PublicKey, signature: TpmSignature, message: bytes) -> bool:
    """Return whether *signature* over *message* was made with *key*."""
    return tpm.is_signed_by(key, signature.scheme, signature.hash_algorithm, signature.parts, message)


def _symmetric(reader: _Reader) -> int:
    algorithm = reader.u16()
    if algorithm == _NULL:
        return 0
    bits, mode = reader.u16(), reader.u16()
    if algorithm != _AES or mode != _CFB or bits not in {128, 256}:
        raise reader.refusal("an unknown symmetric algorithm")
    return bits


def _at_most(reader: _Reader, count: int, limit: int) -> int:
    if count > limit:
        raise reader.refusal("a PCR that no TPM has")
    return count


_ATTEST: Final = struct.Struct("!IH")  # magic, type
_CLOCK_AND_BANK: Final = struct.Struct("!QIIBQIHB")  # TPMS_CLOCK_INFO, firmware version, one TPMS_PCR_SELECTION's head


class _Reader:
    """Reads a structure once, front to back."""

    def __init__(self, data: bytes, check: str) -> None:
        self._data = data
        self._check = check
        self._at = 0
        if len(data) > LIMIT:
            raise self.refusal("too large")

    def refusal(self, why: str) -> UntrustedDataError:
        return UntrustedDataError(f"a TPM structure is malformed: {why}", check=self._check)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise self.refusal("it ends early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def fields(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.take(form.size))

    def _number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def u16(self) -> int:
        return self._number(2)

    def u32(self) -> int:
        return self._number(4)

    def sized(self, limit: int) -> bytes:
        length = self.u16()
        if length > limit:
            raise self.refusal("a field is too long")
        return self.take(length)

    def end(self) -> None:
        if self._at != len(self._data):
            raise self.refusal("bytes after its end")
