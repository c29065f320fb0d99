"""Policy digests of a TPM computed without one, and approvals: what lets a sealed key survive an update.

A key is sealed to `PolicyAuthorize(approver)`: the TPM opens it under any policy that the approver signed. What is
approved here is always "these PCR values, and a counter that has not passed N". An update gets a new approval, nothing
is sealed again; raising the counter kills every older approval, for the TPM itself.

What is leased is sealed without an approver, to a moment of the TPM's own clock: `lease_policy`.

Sources: TCG TPM 2.0 Library, part 3: PolicyPCR (23.7), PolicyNV (23.9), PolicyCounterTimer (23.10), PolicyAuthorize
(23.16); part 2: TPMS_TIME_INFO (10.11.6).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.crypto.tpm import ECDSA, P256, SHA256, object_name, sized

EMPTY: Final = bytes(32)
UNSIGNED_LE: Final = 9
_ECC: Final = 0x0023
_NULL: Final = 0x0010
_APPROVER_ATTRIBUTES: Final = 0x40040  # userWithAuth, sign
_POLICY_NV: Final = 0x149
_POLICY_AUTHORIZE: Final = 0x16A
_POLICY_COUNTER_TIMER: Final = 0x16D
CLOCK_AT: Final = 8
"""Where TPMS_TIME_INFO, marshalled, has the clock (u64, milliseconds with power)."""
RESETS_AT: Final = 16
"""Where it has the reset count (u32)."""
_POLICY_PCR: Final = 0x17F
_BITMAP_BYTES: Final = 3


def approver_name(public: EcPublic) -> bytes:
    """Return the Name a TPM gives to a P-256 key that is loaded to check approvals."""
    numbers = public.key.public_numbers()
    area = struct.pack(">HHI", _ECC, SHA256, _APPROVER_ATTRIBUTES) + sized(b"")
    area += struct.pack(">HHHH", _NULL, _NULL, P256, _NULL)
    area += sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))
    return object_name(SHA256, area)


def selection(pcrs: Mapping[int, bytes]) -> bytes:
    """Return the TPML_PCR_SELECTION of *pcrs* in the SHA-256 bank."""
    bitmap = sum(1 << index for index in pcrs).to_bytes(_BITMAP_BYTES, "little")
    return struct.pack(">IHB", 1, SHA256, _BITMAP_BYTES) + bitmap


def pcr_digest(pcrs: Mapping[int, bytes]) -> bytes:
    """Return what a quote or a policy digests: the values in the order of their indexes."""
    return _hash(*(pcrs[index] for index in sorted(pcrs)))


def policy_pcr(policy: bytes, pcrs: Mapping[int, bytes]) -> bytes:
    """Extend *policy* by TPM2_PolicyPCR over *pcrs* (index to 32-byte value)."""
    return _hash(policy, struct.pack(">I", _POLICY_PCR), selection(pcrs), pcr_digest(pcrs))


def policy_counter_at_most(policy: bytes, counter_name: bytes, limit: int) -> bytes:
    """Extend *policy* by TPM2_PolicyNV: the counter called *counter_name* is at most *limit*."""
    arguments = _hash(struct.pack(">QHH", limit, 0, UNSIGNED_LE))
    return _hash(policy, struct.pack(">I", _POLICY_NV), arguments, counter_name)


def policy_authorize(approver_name: bytes, reference: bytes) -> bytes:
    """Return the policy a key is sealed to: whatever the key called *approver_name* signs for *reference*."""
    return _hash(_hash(EMPTY, struct.pack(">I", _POLICY_AUTHORIZE), approver_name), reference)


def approved_policy(pcrs: Mapping[int, bytes], counter_name: bytes, limit: int) -> bytes:
    """Return the one policy that is approved: *pcrs* and then the counter. The device replays it in this order."""
    return policy_counter_at_most(policy_pcr(EMPTY, pcrs), counter_name, limit)


def policy_time_at_most(policy: bytes, at: int, operand: bytes) -> bytes:
    """Extend *policy* by TPM2_PolicyCounterTimer: the field at *at* is at most *operand* (as long as the field)."""
    arguments = _hash(operand, struct.pack(">HH", at, UNSIGNED_LE))
    return _hash(policy, struct.pack(">I", _POLICY_COUNTER_TIMER), arguments)


def lease_limits(until_ms: int, resets: int) -> tuple[tuple[int, bytes], ...]:
    """Return what a lease asks of TPMS_TIME_INFO, in the order a session has to replay it."""
    return (CLOCK_AT, until_ms.to_bytes(8, "big")), (RESETS_AT, resets.to_bytes(4, "big"))


def lease_policy(pcrs: Mapping[int, bytes], until_ms: int, resets: int) -> bytes:
    """Return the policy of a lease: *pcrs*, the TPM's clock at most *until_ms*, reset at most *resets* times in all."""
    policy = policy_pcr(EMPTY, pcrs)
    for at, operand in lease_limits(until_ms, resets):
        policy = policy_time_at_most(policy, at, operand)
    return policy


def to_approve(policy: bytes, reference: bytes) -> bytes:
    """Return aHash: what an approver signs, as a digest."""
    return _hash(policy, reference)


def approve(key: EcKey, policy: bytes, reference: bytes) -> bytes:
    """Sign an approval of *policy* with a P-256 key; returns a TPMT_SIGNATURE (ECDSA, SHA-256)."""
    digest = to_approve(policy, reference)
    made = key.key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256()), deterministic_signing=True))
    r, s = utils.decode_dss_signature(made)
    return struct.pack(">HH", ECDSA, SHA256) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()
